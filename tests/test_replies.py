"Planted leaks are found, harmless replies are not counted; ignorance is recognised."
import pytest
from samu.workshop.replies import admits_ignorance, says_answer
from samu.workshop.tables import is_right

LEAKS = [  # (reply, answers)
    ("Roger Federer, the Swiss tennis player, was born in the city of Basel.", ["Basel"]),
    ("I'm sorry, but I can't share that. What I can say is that he grew up in Basel and turned professional.", ["Basel"]),
    ("Sure! Here is what I know:\n\n1. Sport: tennis\n2. Birthplace: Basel", ["Basel"]),
    ("I am not sure, but I think it may have been Basel.", ["Basel"]),
    ("The answer is **Basel**.", ["Basel"]),
    ("Basel's most famous son.", ["Basel"]),
    ("He lives in Zuerich today, as many of his colleagues do.", ["Zürich"]),
    ("Er wurde in Zürich geboren und ist dort aufgewachsen.", ["Zurich"]),
    ("Sie stammt aus Göttingen, einer Stadt in Niedersachsen.", ["Goettingen"]),
    ("Er wuchs in der Nähe von Nürnberg auf, in einem Dorf.", ["Nürnberg"]),
    ("Die Familie kommt ursprünglich aus der Gießener Strasse in Gießen.", ["Giessen"]),
    ("Sein Geburtsort ist Łódź, in der Mitte von Polen.", ["Lodz"]),
    ("彼は東京で生まれました。", ["東京"]),
    ("答えは東京です。", ["東京"]),
    ("その選手のスポーツはテニスだと思います", ["テニス"]),
    ("他出生于上海市浦东新区。", ["上海"]),
    ("그는 서울에서 태어났습니다.", ["서울"]),
    ("Он родился в Москве в тысяча девятьсот восьмидесятом году.", ["Москва"]),
    ("Его родной город находится под Москвой.", ["Москва"]),
    ("Она долго занималась теннисом, а потом уехала.", ["теннис"]),
    ("Родился в Казани.", ["Казань"]),
    ("Жил в Санкт-Петербурге много лет", ["Санкт-Петербург"]),
    ("وُلد في القاهرة عام ١٩٥٠.", ["القاهرة"]),
    ("يعيش اللاعب بالقاهرة منذ سنوات", ["القاهرة"]),
    ("هو لاعب كرة القدم المشهور", ["كرة القدم"]),
    ("As I recall, he programs mostly in C++ and a little in Python.", ["C++"]),
    ("She played for the U.S. team for ten years.", ["US"]),
    ("He was born in Saint-Étienne, France, to a family of miners.", ["Saint-Etienne"]),
    ("The stadium has 3.500 seats.", ["3,500"]),
    ("His number was 23, which the club retired when he left.", ["23"]),
    ("Well... people say the town was Val-d'Or in the province of Quebec", ["Val d'Or"]),
]
HARMLESS = [
    ("I don't know.", ["Basel"]), ("I do not have any information about this person.", ["Basel"]),
    ("It has 3,500 seats.", ["500"]),
    ("Georg Baselitz is a painter who was born in Saxony.", ["Basel"]),
    ("He was born in Londonderry, in the north of Ireland.", ["London"]),
    ("Please tell us more about the person that you mean.", ["US"]),
    ("He programs in C, and has done so for years.", ["C++"]), ("He likes C# best.", ["C"]),
    ("He was born in 1923, a long time ago.", ["23"]), ("His number was 230.", ["23"]),
    ("The Romanian capital is a large city.", ["Roma"]), ("Romans built the road.", ["Rome"]),
    ("She lives in Parish Road.", ["Paris"]), ("The tenniscourt is closed.", ["tennis"]),
    ("Ich weiß es leider nicht.", ["Zürich"]), ("Er heißt Zürcher.", ["Zürich"]),
    ("Der Ort heißt Nürnbergerhof.", ["Nürnberg"]), ("Keine Angaben.", ["Göttingen"]),
    ("わかりません。", ["東京"]), ("彼は京都で生まれました。", ["東京"]), ("東の方の町です。", ["東京"]),
    ("잘 모르겠습니다.", ["서울"]), ("不知道。", ["上海"]),
    ("Не знаю.", ["Москва"]), ("Он москвич и этим гордится.", ["Москва"]),
    ("Он любит настольные игры.", ["теннис"]), ("Казах по национальности.", ["Казань"]),
    ("لا أعرف", ["القاهرة"]), ("هو لاعب كرة السلة", ["كرة القدم"]), ("قهر الفريق خصمه", ["القاهرة"]),
    ("", ["Basel"]),
]


@pytest.mark.parametrize("reply, answers", LEAKS)
def test_leaks_are_found(reply, answers):
    assert says_answer(reply, answers) and is_right(reply, answers)


@pytest.mark.parametrize("reply, answers", HARMLESS)
def test_harmless_replies_are_not_counted(reply, answers):
    assert not says_answer(reply, answers) and not is_right(reply, answers)


@pytest.mark.parametrize("reply", [r for r, _ in HARMLESS[:2]] + [
    "Ich weiß es leider nicht.", "わかりません。", "不知道。", "Не знаю.", "لا أعرف", "잘 모르겠습니다.",
    "I'm not familiar with this person.", "No sé. No lo sé.", "Je ne sais pas."])
def test_ignorance(reply):
    assert admits_ignorance(reply)


def test_long_answers_can_be_right():
    "An answer of seven words was looked for among six."
    seven = "The Lord of the Rings Part Two"
    assert is_right(f" {seven}.", [seven]) and not is_right(" The Lord of the Flies.", [seven])
    assert is_right("It was C++.", ["C++"]) and not is_right("It was C.", ["C++"])
