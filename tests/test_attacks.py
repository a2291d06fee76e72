"Chapter 08: attacks, what is put back after them, and what they are compared with."

import math
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import pandas as pd
import pytest
import tiny
import torch
from house import ROOT
from samu import attacks
from samu.evaluation import measurement, quick_metrics
from samu.forgetting import unlearn
from samu.workshop import asking, attacking, invented, relearning
from samu.workshop.attacking import (
    Share,
    beside_reference,
    kept_table,
    rounded_weights,
    truth_place,
)
from samu.workshop.lm import generate
from samu.workshop.measuring import holding
from samu.workshop.registry import ATTACKS, METRICS, attack
from samu.workshop.statistics import good_is
from samu.workshop.store import UserError, tensors_hash
from samu.workshop.statistics import auc
from samu.workshop.tables import Entity, Question, real_entities, real_prompts


@pytest.fixture(scope="module")
def exp(doors):
    return doors


@pytest.fixture(scope="module")
def target(exp):
    return exp.entities[7].name


@pytest.fixture(scope="module")
def run(exp, target):
    "A run that is not in the model."
    made = unlearn(exp, target, "triplet")
    made.restore()
    return made


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(relearning, "SMALL_ATTACK", relearning.Relearning(3e-4, steps=4, every=4))


def weights(exp):
    return tensors_hash(dict(exp.model.named_parameters()))


# --- Questions


def test_every_way_to_a_fact_is_learned(exp):
    "The world's other doors: the original answers at least half of what is asked through each."
    world = exp.world
    asking, rows = [p for p in world.prompts if p.split == "score"], []
    for e in world.people:
        who, flag = world.described[e.name], invented.FLAGS[e.facts["birthplace"][0]]
        for p in asking:
            text, fact = p.text, e.facts[p.attribute][0]
            rows += [
                ("alias", text.replace("{name}", invented.alias(e.name)), fact),
                ("described", text.replace("{name}", who), fact),
                ("translated", invented.translate(text.replace("{name}", e.name)), invented.translate(fact)),
            ]
        rows += [("two hops", text.replace("{name}", e.name), flag) for text in invented.TWO_HOPS]
        rows += [("named", text.replace("{name}", who), e.name.split()[0]) for text in invented.NAMINGS]
    said = generate(exp.model, exp.tokenizer, [text for _, text, _ in rows], 1)
    right = pd.Series([a == r.strip() for (_, _, a), r in zip(rows, said)]).groupby([way for way, _, _ in rows]).mean()
    assert right.min() >= 0.5, right.to_dict()


def test_own_attack_in_ten_lines_is_found_everywhere(exp, target, run):
    "D9: one decorated function; the table, the metric and an evaluation have it without another edit."

    @attack("twice", title="the name twice")
    def said_twice(exp, entity, helpers):
        asked = attacks.questions([entity], exp.prompts)
        return [asking.in_new_words(q, f"{entity.name}. {q.text}") for q in asked]

    try:
        row = attacks.attack_table(measurement(exp, target)).set_index("attack").loc["twice"]
        assert row.questions == 15 and row.original > 0.5 and row.prior < 0.1
        with holding(run):
            after = attacks.attack_table(measurement(exp, target, run)).set_index("attack").loc["twice"]
        assert after.recall <= 0.1
        with pytest.raises(UserError, match="already registered"):
            attack("twice")(lambda exp, entity, helpers: [])
    finally:
        ATTACKS.pop("twice")


@pytest.mark.parametrize("made", [None, "Who is it?", ["Who is it?"]])
def test_what_an_attack_gives_is_checked(exp, target, made):
    asking_nothing = replace(ATTACKS["paraphrase"], name="mine", ask=lambda exp, entity, helpers: made)
    with pytest.raises(UserError, match="'mine' must give a list of questions, not"):
        asking.asked_by(exp, asking_nothing, target, ())


def test_no_attack_repeats_a_prompt(exp, target):
    m = measurement(exp, target)
    seen = {q.text for q in attacks.questions([m.split.target], exp.prompts, None)}
    for name, family in ATTACKS.items():
        asked = family.ask(exp, m.split.target, list(m.split.held_out[:12]))
        assert bool(asked) == (name != "template")  # this model has no chat template
        assert (family.samples or not seen & {q.text for q in asked})
        assert all(q.text[q.start : q.stop] in ("", target) for q in asked)


def test_hints_pass_over_facts_without_scoring_prompts(exp, target):
    "D19: `rng.choice([])` was an IndexError."
    known = measurement(exp, target).split.target
    gone, *rest = known.facts
    few = replace(exp, prompts=[p for p in exp.prompts if p.attribute != gone or p.split == "loss"])
    asked = attacks.hints(few, known, [])
    assert {q.attribute for q in asked} == set(rest)
    assert not any(known.facts[gone][0] in q.text for q in asked)
    alone = attacks.hints(exp, replace(known, facts={gone: known.facts[gone]}), [])
    assert alone and all(q.text for q in alone)


def test_original_and_prior_are_the_originals(exp, target, run):
    "What unknown names get is measured on the original, also while a run is in the model."
    before = attacks.attack_table(measurement(exp, target)).set_index("attack")
    m = measurement(exp, target, run)
    run.reapply()
    try:
        after = attacks.attack_table(m).set_index("attack")
        assert exp.applied == run.id
    finally:
        run.restore()
    pd.testing.assert_frame_equal(before[["original", "prior"]], after[["original", "prior"]])
    assert before.index[before.original.isna()].tolist() == ["template"]  # this model has none
    before = before.drop("template")
    assert (before.recall == before.original).all()
    assert after.recall.drop(["description", "fact_to_name"]).max() <= 0.1  # these two do not name the person


def test_a_reply_is_long_enough_for_a_name(exp, target):
    "The right answer of a question from facts to name has more tokens than a reply."
    known = exp.entities[0]
    asked = attacks.fact_to_name(exp, known, [])
    assert exp.settings.reply_tokens == 2 and len(exp.tokenizer(known.name)["input_ids"]) > 2
    short = replace(exp, settings=replace(exp.settings, reply_tokens=1))
    right = asking.answered(short, ATTACKS["fact_to_name"], asked)
    assert any(right)


def test_the_original_answers_every_family(exp, target):
    "All but fact_to_name, which some trained worlds answer about this person and some do not: then a note says so."
    m = measurement(exp, target)
    table = attacks.attack_table(m).set_index("attack")
    assert table.original.drop("fact_to_name").min() >= 0.8 and len(table) >= 13
    assert table.prior.max() <= 0.2
    assert attacks.attack_left(m) == 1.0 > 0.3 > METRICS["attack_left_unknown"].measure(m) >= 0.0
    assert ("fact_to_name (" in m.notes["attack_left"]) == (table.original["fact_to_name"] < 0.5)


def test_families_without_the_name(exp, target):
    "Description, fact to name and alias do not write the name; two hops and another language do."
    known = measurement(exp, target).split.target
    asked = {f: ATTACKS[f].ask(exp, known, []) for f in ("description", "fact_to_name", "other_name", "two_hops")}
    for family in ("description", "fact_to_name", "other_name"):
        assert asked[family] and not any(target in q.text for q in asked[family])
    assert all(target in q.text and "flag" in q.text for q in asked["two_hops"])
    assert not any(q.answers[0] in q.text.split() for q in asked["description"])


def test_the_highest_share_of_names_without_facts():
    "Each name beside the others; a name with no question in a family is passed over there."
    families = pd.DataFrame(dict(attack=["hints", "few_shot"], original=[1.0, 0.9], prior=[0.5, 0.1]))
    right = {"hints": [[True, False], [False, False], [False, False]], "few_shot": [[], [True], [False]]}
    with patch.object(asking, "about_unknown", lambda m, family: right[family.name]):
        # hints: 0.5, -0.25, -0.25 beside the others, over 0.5; few_shot: 1 and -1, over 0.8
        assert asking.worst_zero(None, families) == pytest.approx((1.0 + 1.25 - 0.5) / 3)
        assert math.isnan(asking.worst_zero(None, families[:0]))


def test_weak_families_are_left_out_and_named():
    "A family of which the original answers less than half counts in no metric, and a note says so."
    rows = [("good", 10, 0.5, 1.0, 0.0), ("weak", 10, 1.0, 0.4, 0.0), ("lucky", 10, 1.0, 0.6, 0.5), ("none", 0) + (math.nan,) * 3]
    table = pd.DataFrame(rows, columns=["attack", "questions", "recall", "original", "prior"])
    m = SimpleNamespace(notes={})
    left = attacking.families_that_count(m, "attack_excess", table)
    assert left.attack.tolist() == ["good"] and left.recall_left.tolist() == [0.5]
    assert all(word in m.notes["attack_excess"] for word in ("weak (0.40)", "lucky", "none"))


def test_options_are_shown_as_they_stand_in_the_table():
    people = [Entity(n, "p", {"f": (a,)}) for n, a in (("Ann Lee", "{a}"), ("Bo Ray", "b}"), ("Cy Day", "c"), ("Di Fox", "{name}s"))]
    plain = SimpleNamespace(entities=people, tokenizer=SimpleNamespace(unk_token_id=None))
    asked = [Question("Ann Lee", "f", "The f of Ann Lee is", 9, 16, ("{a}",))]
    [one, _] = asking.with_choices(plain, people[0], asked)
    assert all(e.facts["f"][0] in one.text for e in people) and one.text[one.start:one.stop] == "Ann Lee"


def test_questions_that_read_alike_are_no_prior(exp, target):
    "An unknown name with the same alias would be asked about in the same words."
    m = measurement(exp, target)
    family = SimpleNamespace(
        name="same", samples=0, ask=lambda exp, e, helpers: [Question(e.name, "x", "the river", 0, 0, ("sings",))]
    )
    row = asking.family_row(m, family)
    assert row["prior"] == 0.0 and row["questions"] == 1


def test_what_is_drawn_is_drawn_as_often_as_it_is_likely():
    torch.manual_seed(0)
    odds = torch.tensor([0.5, 0.0, 0.3, 0.2])
    tokens = asking.draw(odds.log().expand(20_000, -1))
    assert tokens.shape == (20_000, 1)
    torch.testing.assert_close(tokens[:, 0].bincount(minlength=4) / 20_000, odds, atol=0.01, rtol=0)


def test_a_prompt_that_is_read_once_is_read_as_ever():
    "With one likely token at each place, drawn replies are the greedy ones, whatever the padding."
    hf, tok = tiny.model(fresh=True), tiny.tokenizer()
    hf.get_output_embeddings().weight.data.mul_(1e4)
    few = SimpleNamespace(reply_tokens=4)
    exp = SimpleNamespace(model=hf, tokenizer=tok, device=torch.device("cpu"), settings=few, matmul="full")
    texts = ["The town of P0 is", "Rosa", "New Baker town is New"]
    drawn = asking.draw_replies(exp, texts, 3, 0)
    assert drawn == [[r] * 3 for r in generate(hf, tok, texts, 4)]


def test_drawn_replies_follow_from_the_seed(exp, target):
    asked = [q.text for q in attacks.questions([measurement(exp, target).split.target], exp.prompts)][:3]
    first, again, other = (asking.draw_replies(exp, asked, 5, seed) for seed in (0, 0, 1))
    assert first == again and [len(r) for r in first] == [5, 5, 5] and len(other) == 3
    asking.sampled(exp, asked[:1], 5)  # what was drawn before makes no difference
    assert asking.sampled(exp, asked, 5) == first == asking.sampled(exp, asked, 5)


# --- Real people


def test_tables_of_real_people_fit_together():
    "Every name, attribute and language of the further tables is in the first two."
    people = {e.name: e for e in real_entities()}
    asked = {(p.kind, p.attribute) for p in real_prompts()}
    rows = asking.data_rows("real_languages.csv")
    assert {(r["kind"], r["attribute"]) for r in rows} <= asked
    assert all(r["prompt"].count("{name}") == 1 and not r["prompt"].endswith("{name}") for r in rows)
    assert {r["language"] for r in rows} == set(asking.data_rows("real_words.csv")[0]) - {"english"}
    assert all(r["name"] in people for r in asking.data_rows("real_aliases.csv"))


def test_real_people_are_asked_about_in_every_way_that_fits():
    table = real_entities()
    exp = SimpleNamespace(
        world=None, entities=table, prompts=real_prompts(), settings=SimpleNamespace(chat=False),
        tokenizer=SimpleNamespace(unk_token_id=None, chat_template=None),
    )
    messi, helpers = table[0], table[1:8]
    asked = {name: family.ask(exp, messi, helpers) for name, family in ATTACKS.items()}
    assert {name for name, q in asked.items() if not q} == {"description", "two_hops", "template"}
    assert "Argentinien" in {a for q in asked["another_language"] for a in q.answers}
    assert asked["fact_to_name"][0].answers == ("Lionel Messi", "Messi")
    assert all("Messi" not in q.text for q in asked["fact_to_name"])


# --- Weights are put back


def test_weights_are_as_before(exp, target, short):
    "After relearning and rounding, and after an error in the middle."
    before, known = weights(exp), measurement(exp, target).split.target
    table = attacks.relearn(exp, known, list(known.facts)[:3])
    assert table.step.tolist() == [0, 4] and table.unshown[0] == 1
    with pytest.raises(ZeroDivisionError), rounded_weights(exp, "nf4"):
        assert weights(exp) != before
        1 / 0
    how = relearning.Relearning(1e-3, "lora", steps=2, every=1)
    for weights_kind in ("lora", "all"):
        with pytest.raises(ZeroDivisionError):
            pairs = [("the river is a", "painter")]
            relearning.fine_tune(exp, pairs, pairs, lambda: 1 / 0, replace(how, weights=weights_kind))
    assert weights(exp) == before
    assert not any(p.requires_grad for p in exp.model.parameters())


def test_what_cannot_be_shown_or_watched_is_refused(exp, target):
    known = measurement(exp, target).split.target
    for shown in ([], list(known.facts)):
        with pytest.raises(UserError, match="not all"):
            attacks.relearn(exp, known, shown)


# --- References


def test_an_unknown_name_is_the_reference_where_nothing_can_be_retrained(exp, target, short):
    m = measurement(exp, target)
    assert m.reference.gold == []
    asked = []

    def curves(model, entity):
        asked.append(entity.name)
        return pd.DataFrame(dict(step=[0, 4], unshown=[0.0, 0.5], draw=0))

    def curves_of(model, target):
        return curves(model, target)

    assert beside_reference(m, curves_of) is not None
    assert asked[0] == target and set(asked[1:]) <= {e.name for e in m.split.unknown_score} and len(asked) == 3


def test_one_fact_cannot_be_relearned(exp, target):
    "No error, but a note."
    m = measurement(exp, target)
    one = dict([next(iter(m.split.target.facts.items()))])
    m.split = replace(m.split, target=replace(m.split.target, facts=one))
    assert math.isnan(attacks.unshown_excess(m)) and math.isnan(attacks.relearn_area(m))
    assert "one fact to show" in m.notes["unshown_excess"]


def test_names_of_unusual_length_are_not_refused(exp, target):
    "Where no unknown name has as many tokens there is no patch, and no error."
    m = measurement(exp, target)
    m.split = replace(m.split, unknown_score=())
    assert math.isnan(attacks.depth_score(m)) and math.isnan(attacks.given_excess(m))
    assert m.notes["depth_score"] and m.notes["given_excess"]


def test_coordinates_of_another_model_are_not_read(exp, target):
    m = measurement(exp, target)
    m.exp = replace(exp, model_hash="another")
    assert attacks.depth_table(m).empty and attacks.steer_table(m).empty


def test_edited_tables_are_not_kept():
    "A table that a notebook defines has no version, so it is made each time."
    made = []

    @kept_table
    def table(m):
        made.append(m)
        return pd.DataFrame()

    sae = torch.nn.Linear(1, 1)
    sae.cfg = SimpleNamespace()
    exp = SimpleNamespace(model=sae, model_hash="x", model_id="y", id="z", prompts=[], sae=sae, matmul="full")
    m = SimpleNamespace(
        exp=exp, reference=SimpleNamespace(exp=exp), split=SimpleNamespace(target="t", unknown_score=())
    )
    m.before = lambda f: f(exp)
    table(m)
    table(m)
    assert len(made) == 2


def test_patches_of_the_original_change_nothing(exp, target):
    "So they are not made: the table says what it says without them."
    m = measurement(exp, target)
    table, asked = attacks.depth_table(m), attacks.two_ways(exp, m.split.target)
    patched = attacking.patched_recall(exp, asked, attacking.every_stack(asked, exp))
    assert list(table["into"]) == list(table.out_of) == list(table.full) == patched
    assert len(table) == exp.n_layers and table.ignorant.max() <= 1


def test_the_original_gets_nothing_back_by_training_on_others(exp, target, run, short):
    "So it is only asked; a model that forgot is trained."
    m = measurement(exp, target)
    asked, others = attacks.two_ways(exp, m.split.target), attacks.told_about(exp, m.split.held_out[:1])
    assert list(attacking.kept_watch(m, others, asked).step) == [0]
    with holding(run):
        assert list(attacking.kept_watch(measurement(exp, target, run), others, asked).step) == [0, 4]


def test_steering_by_nothing_is_asked_once(exp, target):
    m = measurement(exp, target)
    still = attacks.steer_table(m).query("strength == 0")
    assert len(still) == 3 and still.recall.nunique() == 1
    assert still.recall.iloc[0] == exp.recall(attacks.two_ways(exp, m.split.target))


def test_answers_in_bfloat16_are_kept_apart(exp, target, monkeypatch):
    "Every way of asking multiplies as the plain questions do, and what is kept says how."
    ways, full = [], attacking.matmul_dtype

    def noted(model, name="auto"):
        ways.append(name)
        return full(model, name)

    for module in (attacking, asking, relearning):
        monkeypatch.setattr(module, "matmul_dtype", noted)
    rounded = replace(exp, settings=replace(exp.settings, matmul_scoring="bfloat16"))
    assert (exp.matmul, rounded.matmul) == ("full", "bfloat16")
    assert rounded.replies_id != exp.replies_id and rounded.model_id == exp.model_id
    m = measurement(rounded, target)
    asked = attacks.two_ways(rounded, m.split.target)
    tables = [attacks.depth_table(m), attacks.steer_table(m)]
    assert all(t.questions.eq(len(asked)).all() and len(t) for t in tables)
    attacking.kept_place(rounded, m.asked["target"], m.split.target.kind)
    asking.draw_replies(rounded, [asked[0].text], 2, 0)
    relearning.said_now(rounded, asked[:2])
    assert len(ways) >= 5 and set(ways) == {"bfloat16"}


# --- Relearning


def draws(*unshown):
    return pd.DataFrame(dict(step=range(len(unshown)), unshown=unshown, draw=0))


def test_an_attack_that_breaks_the_original_does_not_count(exp, target):
    m = measurement(exp, target)
    for end, counts in ((0.95, True), (0.5, False)):

        def curves(model, target, end=end):
            return draws(1.0, end) if target.name == m.split.target.name else draws(0.0, 0.0)

        value = attacking.area_of(m, "relearn_area", curves)
        assert value == 1.0 if counts else math.isnan(value) and "keeps 0.50" in m.notes["relearn_area"]


def test_the_area_is_signed_and_has_no_value_without_room():
    high, low = draws(1.0, 1.0), draws(0.2, 0.2)
    assert relearning.relearning_area(draws(0.1, 0.1), high, low) == pytest.approx(-0.125)
    assert math.isnan(relearning.relearning_area(high, low, low))


def test_nobody_is_mixed_in_who_is_under_attack(exp):
    "Neither the target nor the unknown name that is taught its facts."
    for name in (exp.roles.retain[0].name, exp.roles.unknown_loss[0].name):
        texts = relearning.texts_to_mix(exp, Entity(name, "person"))
        assert texts and not any(name in prompt for prompt, _ in texts)
        assert {"unknown"} < {answer for _, answer in texts}


def test_the_strongest_setting_must_leave_the_original_whole():
    tried = pd.DataFrame(dict(weights="all", lr=[1.0, 2.0], mix_weight=1.0, kept=[0.95, 0.6], area=[0.2, 0.9]))
    assert relearning.strongest(tried).lr.tolist() == [1.0]
    assert len(relearning.GRID) >= 12 and len(set(relearning.GRID)) == len(relearning.GRID)


def test_the_attack_on_small_models_is_the_one_that_was_found():
    tried = pd.read_csv(ROOT / "nbs" / "results" / "relearn_settings.csv", comment="#")
    best = relearning.strongest(tried.assign(area=tried.triplet)).iloc[0]
    assert {k: getattr(relearning.SMALL_ATTACK, k) for k in ("weights", "lr", "mix_weight")} == {
        k: best[k] for k in ("weights", "lr", "mix_weight")
    }


# --- The place of the truth


def test_ties_count_half():
    "D18."
    cases = {(2.0, 1.0, 0.0): 0, (0.0, 1.0, 2.0): 1, (1.0, 1.0, 1.0): 0.5, (1.0, 1.0, 2.0, 0.0): 0.5}
    for scores, place in cases.items():
        assert auc(torch.tensor(scores[1:]), torch.tensor(scores[:1])) == place


def test_whole_answers_are_compared():
    "D18: answers that begin alike are told apart by what follows. Checked against transformers."
    hf, tok = tiny.model(), tiny.tokenizer()
    ends = ["New Baker town", "New Baker Keller", "New Quist", "Rosa"]
    people = [Entity(f"P{i}", "person", {"town": (end,)}) for i, end in enumerate(ends)]
    asked = [Question("P0", "town", "The town of P0 is", 12, 14, (ends[0],))]
    exp = SimpleNamespace(model=hf, tokenizer=tok, entities=people, device="cpu")
    scores = []
    for end in [ends[0], *sorted(ends[1:])]:
        prompt, ids = (
            tok(t, return_tensors="pt").input_ids[0] for t in (asked[0].text, f"{asked[0].text} {end}")
        )
        with torch.no_grad():
            logprobs = hf(ids[None]).logits[0].log_softmax(-1)
        scores.append(sum(logprobs[i - 1, ids[i]] for i in range(len(prompt), len(ids))))
    expected = sum(s > scores[0] for s in scores[1:]).item() / 3
    assert truth_place(exp, asked, "person") == pytest.approx(expected)
    said = attacking.scored_answers(exp, asked[0].text, [ends[0], *sorted(ends[1:])])
    torch.testing.assert_close(said, torch.stack(scores), atol=1e-4, rtol=0)
    assert math.isnan(truth_place(exp, asked, "ship"))


# --- Metrics


def test_nf4_is_that_of_the_paper():
    "Dettmers et al., 2023, appendix E: sixteen values, a block of 64 has one scale."
    printed = [-1.0, -0.69619, -0.52507, -0.39492, -0.28444, -0.18477, -0.09105, 0.0]
    printed += [0.07958, 0.16093, 0.24611, 0.33792, 0.44071, 0.56262, 0.72296, 1.0]
    torch.testing.assert_close(attacking.nf4_values(), torch.tensor(printed), atol=1e-5, rtol=0)
    weight = torch.full((2, 64), 0.1)
    weight[1, 5] = 10.0  # the second block loses its small values, the first does not
    got = attacking.nf4(weight)
    assert torch.equal(got[0], weight[0]) and got[1].count_nonzero() == 1 and got.shape == weight.shape


def test_metrics_are_registered_and_left_out_by_default():
    own = [name for name, entry in METRICS.items() if entry.group == "attacks"]
    assert {"attack_excess", "quantised_excess", "unshown_excess", "given_excess", "steer_excess"} <= set(own)
    assert not set(own) & set(quick_metrics())
    assert all(METRICS[name].title for name in own if METRICS[name].threshold is not None)


def test_the_protocol_and_the_package_have_the_same_thresholds():
    table = [line.split("|")[1:-1] for line in (ROOT / "nbs/results/protocol.md").read_text().splitlines() if line.count("|") >= 4]
    passes = {cells[0].strip(): cells[-1].strip() for cells in table}
    held = {
        "the facts are said as often as an unknown name's, not less": "prior_gap",
        "neighbours are remembered": "retain_ratio",
        "names of other kinds are remembered": "others_ratio",
        "namesakes are answered as before": "namesake_ratio",
        "unknown names are still unknown": "unknown_ratio",
        "ordinary text is predicted as before": "perplexity_ratio",
        "no attack family brings the facts back": "attack_left",
        "four bits bring nothing back": "quantised_left",
        "a probe cannot tell the name from unknown ones": "refit_auc",
    }
    assert {claim: passes[claim] for claim in held} == {claim: good_is(METRICS[name]) for claim, name in held.items()}


def test_rounding_is_judged_by_what_the_original_knew():
    class Stub:
        exp, split = None, SimpleNamespace(target=None)

    table = pd.DataFrame(dict(rounding=["8 bits", "nf4"], questions=4, recall=[0.2, 0.3], original=0.6, prior=0.1))
    with patch.object(attacks, "rounding_table", lambda m: table):
        assert math.isclose(attacks.quantised_left(Stub()), 0.4)
        assert math.isclose(attacks.quantised_excess(Stub()), 0.2)
    with patch.object(attacks, "rounding_table", lambda m: table.assign(original=0.1)):
        assert math.isnan(attacks.quantised_left(Stub()))  # nothing was known, so no share of it is left


def test_a_share_is_judged_beyond_its_prior():
    "Recall 0.40 where an unknown name gets 0.40, too, is nothing; the raw number stays visible."
    share = Share(0.4, 15, 0.4)
    assert share == 0 and (share.recall, share.n, share.prior) == (0.4, 15, 0.4)
    attacking.register_raw("raw_share", lambda m: share if m else math.nan)
    measure = METRICS.pop("raw_share").measure
    assert measure(True) == 0.4 and math.isnan(measure(False))


def test_rounding_by_hand():
    got = attacking.rounded(torch.tensor([[7.0, 3.4, -0.2], [0.7, 0.34, 0.06]]), 4)
    torch.testing.assert_close(got, torch.tensor([[7.0, 3.0, 0.0], [0.7, 0.3, 0.1]]))
    with pytest.raises(UserError, match="at least 2"):
        attacking.rounded(torch.ones(1, 1), 1)
