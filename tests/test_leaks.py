"""Planted leaks are caught, by checks that every experiment passes through."""

import json
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module

import pandas as pd
import pytest
from house import ROOT, other_thresholds
from samu import evaluation, forgetting, saes
from samu.evaluation import measurement
from samu.workshop.leaks import names_in, refuse_mixed_priors, refuse_other_thresholds
from samu.workshop.measuring import Reference, holding
from samu.workshop.registry import METRICS, UserError
from samu.workshop.statistics import good_is, thresholds



def again(exp, **changes):
    "The same experiment with something else in it; what was found out about the original comes along."
    made = replace(exp, **changes)
    parts = ("unknown", "grades", "known", "roles", "sae", "latents", "centroids")
    made.__dict__.update({k: exp.__dict__[k] for k in parts if k in exp.__dict__})
    return made


def test_an_honest_task_is_let_through(exp):
    forgetting.make_task(exp, [exp.entities[7].name], exp.settings.loop)


def test_a_scoring_prompt_in_a_loss(exp):
    """A prompt that measures is put among those of the losses, under the same words."""
    planted = next(p for p in exp.prompts if p.split == "score" and not p.text.startswith("{name}"))
    leaky = again(exp, prompts=[*exp.prompts, replace(planted, split="loss")])
    with pytest.raises(UserError, match="only measures"):
        forgetting.make_task(leaky, [exp.entities[7].name], exp.settings.loop)


def test_a_scoring_prompt_in_the_texts_that_are_cut_after_the_name(exp):
    """The beginning of a scoring prompt, with the target's name, is in the forget batches and nowhere else."""
    from samu.workshop.leaks import refuse_loss_leaks

    target = exp.entities[7]
    loss = {p.text.split("{name}")[0] for p in exp.prompts if p.split == "loss"}
    p = next(p for p in exp.prompts if p.split == "score" and p.text.split("{name}")[0] not in loss)
    text = p.text.split("{name}")[0] + target.name
    with pytest.raises(UserError, match="only measures"):
        refuse_loss_leaks(exp, [target], [], [text])


def test_a_held_out_name_in_a_loss(exp):
    roles = replace(exp.roles, retain=(*exp.roles.retain, *exp.roles.held_out))
    leaky = again(exp)
    leaky.roles = roles
    with pytest.raises(UserError, match="only measures"):
        forgetting.make_task(leaky, [exp.entities[7].name], replace(exp.settings.loop, retain_texts=4800))


def test_no_namesake_that_is_scored_is_retained(exp):
    """Scoring asks about more namesakes than before; the retained texts must leave out all of them."""
    target = exp.entities[7]
    task = forgetting.make_task(exp, [target.name], exp.settings.loop)
    texts = [t for b in (*task.retain, *task.retain_answers) for t in exp.tokenizer.batch_decode(b.ids)]
    split = forgetting.split_for(exp, target.name)
    scored = {q.name for q in evaluation.groups_of(exp, split)["namesakes"]}
    assert len(scored) == 20 and not names_in(texts, scored)


def test_a_held_out_name_in_the_texts_of_the_dictionary(exp, tmp_path):
    name = exp.roles.unknown_score[0].name
    leaky = again(exp)
    leaky.sae_texts = lambda n: [*exp.sae_texts(20), f"The life of {name} began in Rome."]
    with pytest.raises(UserError, match=f"dictionary would read '{name}'"):
        saes.train_sae(leaky, tmp_path / "sae", 64, 4, 21, 100)
    assert not (tmp_path / "sae").exists()


def test_the_texts_of_the_dictionary_hold_no_unknown_name_that_measures(exp):
    assert not names_in(exp.sae_texts(3000), [e.name for e in exp.roles.unknown_score])


def test_a_prior_of_the_wrong_model(exp):
    """The reference says that it gives the original, while a run's weights are in the model."""
    run = forgetting.unlearn(exp, exp.entities[7].name, "triplet", steps=3, retain_texts=80)
    run.restore()
    m = measurement(exp, run.target, run)
    m.reference = Reference(exp, nullcontext)
    with holding(run), pytest.raises(UserError, match="those of the original model"):
        METRICS["prior"].measure(m)
    assert METRICS["prior"].measure(m) == 0


def test_a_table_with_two_priors_for_one_person(exp, monkeypatch):
    rows = pd.DataFrame(dict(target=["a", "a"], method=["original", "npo"], prior=["0.40", "0.22"]))
    with pytest.raises(UserError, match="prior of 'a' differs"):
        refuse_mixed_priors(rows)
    monkeypatch.setattr(evaluation, "fill_grid", lambda *a: rows)
    with pytest.raises(UserError, match="prior of 'a' differs"):
        evaluation.compare(exp, [exp.entities[7].name], ["triplet"], metrics=["prior"])
    refuse_mixed_priors(rows.assign(prior=0.4))


def test_a_report_with_another_threshold():
    claim = dict(metric="retain_ratio", threshold=0.97, ceiling=None)
    refuse_other_thresholds([claim, dict(metric="of_ones_own", threshold=3.0)])
    for planted in (dict(threshold=0.95), dict(ceiling=1.2)):
        with pytest.raises(UserError, match="'retain_ratio' by another threshold"):
            refuse_other_thresholds([claim | planted])


@pytest.mark.parametrize("text", ["| `{}` | {} |", "Neighbours: <code>{}</code>, threshold: {}."])
def test_a_page_with_another_threshold(text):
    assert other_thresholds(text.format("perplexity_ratio", "at most 1.03")) == []
    [fault] = other_thresholds(text.format("perplexity_ratio", "at most 1.05"))
    assert fault == "perplexity_ratio should be at most 1.03, not at most 1.05"
    assert other_thresholds(text.format("namesake_ratio", "0.90 to 1.05"))


def test_readme_chapters_and_stored_pages_say_the_registered_thresholds():
    import_module("samu.attacks")
    pages = [*ROOT.glob("*.md"), *ROOT.glob("nbs/*.md"), *ROOT.glob("nbs/results/**/*.html")]
    texts = {p.name: p.read_text("utf-8") for p in pages}
    for file in ROOT.glob("nbs/*.ipynb"):
        cells = json.loads(file.read_text("utf-8"))["cells"]
        texts[file.name] = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    assert {name: other_thresholds(text) for name, text in texts.items() if other_thresholds(text)} == {}


def test_the_audit_and_the_tables_say_the_same():
    """The page takes its words from `good_is`, as `summary` does; there is no second list."""
    table = dict(thresholds()[["metric", "good is"]].itertuples(index=False))
    assert table["retain_ratio"] == "at least 0.97" and set(table) <= set(METRICS)
    assert all(good_is(METRICS[name]) == said for name, said in table.items())
    chapter = import_module("samu.your_model")
    claim = chapter.judge(METRICS["retain_ratio"], 1.0, 1.0)
    assert (claim.good, claim.threshold) == (table["retain_ratio"], METRICS["retain_ratio"].threshold)
