"Chat models: the template is applied, the name is found inside it, answers in sentences count."
import copy

import pytest
import samu
import tiny
from samu.entities import questions
from samu.workshop import chat, lm, setups
from samu.workshop.batching import Span, answer_spans, batches, encode, joined, name_spans, text_spans
from samu.workshop.checking import Check, about_model
from samu.workshop.lm import generate
from samu.workshop.loop import SiteReader, held_names
from samu.workshop.planning import empty_task, sketch
from samu.workshop.registry import UserError
from samu.workshop.runtime import matmul_dtype
from samu.workshop.targets import in_own_words

TEMPLATE = ("{% for m in messages %}{{ '<s>' if loop.first }}[{{ m['role'] }}] {{ m['content'] }} [end]\n"
            "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}")


def tokenizer():
    tok = copy.deepcopy(tiny.tokenizer())
    tok.chat_template = TEMPLATE
    return tok


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def folder(request, tmp_path_factory):
    "A chat model of each family that knows everybody in its table, asked through its template."
    place, hf, tok = tiny.save(tmp_path_factory.mktemp(request.param), request.param, tok=tokenizer())
    people = [setups.Entity(n, "person", dict(town=("x",), job=("x",))) for n in tiny.people(30)]
    prompts = chat.chat_prompts(tok, setups.default_prompts(people))
    tiny.own_answers(place / "entities.csv", hf, tok, tiny.people(30), attributes=("town", "job"), prompts=prompts)
    return place


def test_every_family(folder):
    exp = setups.load(str(folder))
    assert exp.settings.reply_tokens == 40
    assert all(p.text.startswith("[user] ") and p.text.endswith("[assistant] ") for p in exp.prompts)
    asked = questions(exp.entities[:2], exp.prompts)
    [(ids, _)] = encode(exp.tokenizer, [asked[0].text])
    assert ids[0] == exp.tokenizer.bos_token_id and ids.count(exp.tokenizer.bos_token_id) == 1
    for b in batches(exp.tokenizer, name_spans(asked)[0]):
        found = [exp.tokenizer.decode(b.ids[i, p]) for i, p in zip(b.batch_index, b.position)]
        assert "".join(found).replace(" ", "")  # the tokens of the names
        assert all(t.strip() in " ".join(q.name for q in asked) for t in found if t.strip())
    read = [setups.shown_text(exp, q.text) for q in asked]  # in tables and on the audit's page
    assert all(q.name in text and "[user]" not in text and "[assistant]" not in text for q, text in zip(asked, read))
    replies = exp.ask(asked)
    with matmul_dtype(exp.model):  # as `ask` multiplies on this machine
        assert replies == generate(exp.model, exp.tokenizer, [q.text for q in asked], 40)


def test_half_of_what_is_held_are_names(folder):
    "Replies are long: in retained texts alone, names would hardly count."
    exp = setups.load(str(folder))
    asked = questions(exp.entities[:4], exp.prompts, "loss")
    moved = [q for q in asked if q.name == exp.entities[3].name]
    named = held_names(exp, [*(q.text for q in asked), "[user] hello [end]"], moved, 400)
    begun = dict.fromkeys(q.text[:q.stop] for q in asked if q not in moved)
    texts = [exp.tokenizer.decode(row[mask]) for b in named for row, mask in zip(b.ids, b.mask, strict=True)]
    assert len(texts) == len(begun) < len({q.text[:q.stop] for q in asked})
    assert all(any(q.name in t for q in asked) and "[end]" not in t for t in texts)
    for b in named:
        for row, mask, text in zip(b.ids, b.mask, range(len(b)), strict=True):
            places = b.position[b.batch_index == text]
            assert places[-1] == mask.sum() - 1 and exp.tokenizer.decode(row[places]).strip() in list(begun)[
                int(b.text_index[text])]
    task = empty_task(copy.copy(exp), [exp.entities[0].name], exp.settings.loop)
    nothing_between = ["".join(p.text.split("{name}")) for p in exp.prompts]
    assert held_names(exp, nothing_between, [], 400) == []
    whole = [bool((b.from_end >= 8).any()) for b in task.retain]  # no name is so long
    assert 0.4 <= whole.count(False) / len(whole) <= 0.6


def test_a_plan_is_that_of_the_chat_model(folder):
    "Its prompts, its replies and its own settings; it was planned as a model that continues texts."
    planned, loaded = sketch(str(folder)), setups.load(str(folder))
    assert planned.settings == loaded.settings and planned.settings.loop.steps == 100
    assert [p.text for p in planned.prompts] == [p.text for p in loaded.prompts]


def test_few_bits_leave_what_a_chat_model_trains_in_full(folder):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed; pip install bitsandbytes")
    exp = setups.load(str(folder), device="cpu", dtype="float32", frozen_bits=8)
    assert exp.frozen_bits == 8
    assert exp.settings.chat and SiteReader(exp, exp.settings.loop).first <= exp.layer  # or UserError


def test_a_template_that_cannot_be_used_is_one_sentence():
    tok = copy.deepcopy(tiny.tokenizer())
    for template, says in (("{{ half", "cannot be used"), ("{{ raise_exception('no system') }}", "no system"),
                           ("hello", "does not hold the request")):
        tok.chat_template = template
        with pytest.raises(UserError, match=says) as error:
            chat.chat_text(tok, "Who?")
        assert "--no-chat" in str(error.value) and "\n" not in str(error.value)


ENDS_IN_A_BRACKET = ("{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
                     "{% else %}{{ 'GAP' + m['content'] + '</s>' }}{% endif %}{% endfor %}")


@pytest.mark.parametrize("gap", ["", " ", "\n"])
def test_a_reply_follows_a_request_as_the_template_writes_it(gap):
    "Mistral has had templates with a space behind [/INST], and others without; each got a space."
    tok = copy.deepcopy(tiny.tokenizer())
    tok.chat_template = ENDS_IN_A_BRACKET.replace("GAP", gap)
    asked = chat.chat_text(tok, "Where is Anna Abbot?")
    turns = [dict(role="user", content="Where is Anna Abbot?"), dict(role="assistant", content="Paris")]
    whole = tok.apply_chat_template(turns, tokenize=False)
    text = joined(asked, "Paris")
    spans = [*answer_spans([(asked, "Paris")]), Span(text, 16, 26, 1), *text_spans([text], "[INST] ")]
    read = [tok.decode(b.ids[0, b.position]) for s in spans for b in batches(tok, [s])]
    assert read[0] == f"{gap}Paris" and read[1].strip() == "Anna Abbot" and f"{read[2]}</s>".lstrip() == whole[7:]


@pytest.mark.parametrize("template", ["{{ half", "{{ raise_exception('no system') }}", "hello", "{% for m in messages %}"
                                      "{{ m['content'] }}{% endfor %}", None, "{{ messages[0]['content'] + 1 }}",
                                      dict(tool_use="{{ 1 }}", rag="{{ 2 }}")])
def test_a_template_that_says_nothing_of_replies_changes_none(template):
    tok = copy.deepcopy(tiny.tokenizer())
    tok.chat_template = template
    [b] = batches(tok, answer_spans([("Anna is in", "Paris")]))
    assert tok.decode(b.ids[0], skip_special_tokens=True) == "Anna is in Paris"


ASKS = ("{% for m in messages %}{{ ('Q: ' if m['role'] == 'user' else '') + m['content'] }}"
        "{% if m['role'] == 'user' %}{{ 'END' }}{% endif %}{% endfor %}")


@pytest.mark.parametrize("end, text", [(" A:", "Who is in Rome? A: Anna. And in Paris?"), ("\n", "one\n two"),
                                       (" A:", "Who is it? A: Anna")])
def test_only_the_place_between_request_and_reply_is_joined(end, text):
    "A request may hold the words that end a request, and a text may hold them without being one."
    tok = copy.deepcopy(tiny.tokenizer())
    tok.chat_template = ASKS.replace("END", end.replace("\n", "\\n"))
    for whole in (joined(chat.chat_text(tok, text), "Paris"), text):
        [b] = batches(tok, text_spans([whole], "Q: "))
        joint = f"{end} Paris" if whole != text else "-"  # behind a new line no space is written anyway
        assert tok.decode(b.ids[0], skip_special_tokens=True) == whole.replace(joint, f"{end}Paris")


def test_the_template_can_be_left_out(folder):
    exp = setups.load(str(folder), chat=False)
    assert setups.shown_text(exp, "[user] as it is") == "[user] as it is"
    assert exp.settings.reply_tokens == 5 and not any("[user]" in p.text for p in exp.prompts)
    assert samu.load(folder, chat=False).prompts == exp.prompts
    with pytest.raises(UserError, match="only is for a table of your own"):
        samu.load(folder, only=True)
    planned = sketch(str(folder), chat=False)
    assert planned.settings == exp.settings and planned.prompts == exp.prompts
    about_model(exp, check := Check())  # it said yes
    assert dict(check.facts)["chat template"] == "not used: it continues texts"


def test_without_its_template_it_forgets_as_a_model_that_continues_texts(folder):
    "It kept the steps, step size, weight and weights of a chat model."
    asked, exp = setups.load(str(folder)), setups.load(str(folder), chat=False)
    assert asked.settings.loop.steps == 100 != exp.settings.loop.steps
    bare = setups.without_chat(asked)
    assert bare.settings == exp.settings and bare.prompts == exp.prompts


def test_asking_for_its_own_replies_shows_a_bar(folder, monkeypatch):
    "A chat run began with minutes of silence. TQDM_DISABLE holds: what is passed would count more."
    exp, bars = setups.load(str(folder)), []
    monkeypatch.setenv("SAMU_CACHE", str(folder / "cache"))
    monkeypatch.setattr(lm, "tqdm", lambda groups, **options: bars.append(options) or groups)
    asked = questions(exp.entities[:2], exp.prompts)
    in_own_words(exp, [(q.text, "x") for q in asked[:2]])
    exp.ask(asked)
    assert bars == [dict(desc="own replies", leave=False)]


def test_an_answer_in_a_sentence_counts(folder, monkeypatch):
    exp = setups.load(str(folder))
    asked = questions(exp.entities[:1], exp.prompts)[:1]
    said = f"Thank you for asking. As far as I know, the answer to this is {asked[0].answers[0]}, of course."
    monkeypatch.setattr(setups.Experiment, "ask", lambda self, *args: [said])
    assert exp.recall(asked) == 1.0
