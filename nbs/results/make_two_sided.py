"""Make two_sided.csv: what each method leaves behind, and what fine-tuning on three of five facts brings back. Resumes where it stopped.

python nbs/results/make_two_sided.py [seeds, e.g. 0,1,2] [which of the eight targets, e.g. 0,1,2,3]
"""
import copy, csv, sys
from pathlib import Path
import torch, torch.nn.functional as F
from samu.entities import make_biographies, questions
from samu.evaluation import evaluate, make_reference
from samu.latents import find_latents, grade
from samu.models import answer, biographies_model, load_setup, recall, unwrap
from samu.saes import sae_for
from samu.unlearning import make_task, unlearn

PLACES, TUNED_ON = (5, 17, 29, 41, 53, 65, 77, 89), (10, 47, 83)   # among the known people; nothing was tuned on the first
SHOWN = (("birthplace", "profession", "employer"), ("hobby", "instrument", "profession"), ("employer", "hobby", "birthplace"))
RATES, STEPS, EVERY, HALF = (1e-4, 3e-4), 60, 5, .5                 # 1e-4: the retrained model needs 20 to 35 steps for what it is shown; 3e-4: about 10
FILE = Path(__file__).with_name("two_sided.csv")
KEPT = ("target_recall", "target_prior", "retain_ratio", "unknown_rate", "perplexity_ratio", "alignment_percentile", "alignment_power", "probe_known", "seconds", "step_ms")

def batch(tokenizer, asked):
    "Prompts padded on the right, the place of their last token, and the first token of the answer."
    rows = tokenizer([q.text for q in asked])["input_ids"]
    longest = max(map(len, rows))
    return (torch.tensor([r + [tokenizer.pad_token_id] * (longest - len(r)) for r in rows]), torch.tensor([len(r) - 1 for r in rows]),
            torch.tensor([tokenizer.convert_tokens_to_ids(q.answers[0]) for q in asked]))

def logits(hf, ids, last): return hf.lm_head(hf.model(ids).last_hidden_state[torch.arange(len(ids)), last])

def relearn(hf, setup, target, shown, lr):
    "Recall of shown and of unshown facts in scoring prompts, every few steps of fine-tuning all weights on statements and questions about the shown ones."
    hf, tokenizer = copy.deepcopy(hf).requires_grad_(True), setup.tokenizer
    train = batch(tokenizer, [q for q in questions([target], setup.prompts, "loss") if q.attribute in shown])
    tests = [batch(tokenizer, [q for q in questions([target], setup.prompts) if (q.attribute in shown) == s]) for s in (True, False)]
    optimizer, curve = torch.optim.AdamW(hf.parameters(), lr=lr, weight_decay=0.0), []
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            with torch.no_grad(): curve.append((step, *[(logits(hf, ids, last).argmax(-1) == y).float().mean().item() for ids, last, y in tests]))
        F.cross_entropy(logits(hf, *train[:2]), train[2]).backward(); optimizer.step(); optimizer.zero_grad()
    return curve

def back(hf, setup, target, lr):
    "Mean over choices of shown facts: steps until more than half of the unshown ones are back, their recall after 40 steps and at the highest, steps until all shown are learned."
    curves = [relearn(hf, setup, target, shown, lr) for shown in SHOWN]
    mean = lambda values: sum(values) / len(values)
    first = lambda c, i, above: next((r[0] for r in c if r[i] > above), STEPS)
    unshown = [mean([c[i][2] for c in curves]) for i in range(len(curves[0]))]
    return {f"relearn_steps_{lr:g}": mean([first(c, 2, HALF) for c in curves]), f"unshown_40_{lr:g}": unshown[40 // EVERY], f"unshown_peak_{lr:g}": max(unshown),
            f"shown_steps_{lr:g}": mean([first(c, 1, .99) for c in curves])}

def rounded_recall(hf, setup, target, bits):
    hf, asked = copy.deepcopy(hf), questions([target], setup.prompts)
    for p in hf.model.layers.parameters():
        if p.ndim == 2:
            step = p.abs().amax(-1, keepdim=True).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
            p.copy_((p / step).round() * step)
    return recall(answer(hf, setup.tokenizer, asked, 1), asked)

def truth_rank(hf, setup, target):
    "Mean rank of the true answer among all answers of its attribute: near that of the retrained model, or the suppression itself tells."
    asked = questions([target], setup.prompts)
    ids, last, y = batch(setup.tokenizer, asked)
    said, ranks = logits(hf, ids, last), []
    for row, q, true in zip(said, asked, y):
        values = setup.tokenizer.convert_tokens_to_ids(sorted({e.facts[q.attribute][0] for e in setup.entities}))
        ranks.append((row[values] > row[true]).sum().item() + 1)
    return sum(ranks) / len(ranks)

def measured(hf, setup, target):
    with torch.no_grad(): row = dict(int8_recall=rounded_recall(hf, setup, target, 8), int4_recall=rounded_recall(hf, setup, target, 4), truth_rank=truth_rank(hf, setup, target))
    for lr in RATES: row |= back(hf, setup, target, lr)
    return row

def write(row):
    new = not FILE.is_file()
    with FILE.open("a", newline="") as f:
        out = csv.DictWriter(f, list(row))
        if new: out.writeheader()
        out.writerow({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})

def main(seeds, which):
    setup = load_setup("biographies")
    sae, grades = sae_for(setup), grade(setup)
    latents, known = find_latents(setup, sae, grades), list(grades[grades.grade == "known"].name)
    gold, _, _ = biographies_model(make_biographies(0), 0, leave_out=[known[i] for i in PLACES + TUNED_ON])
    done = {(r["target"], int(r["seed"]), r["method"]) for r in csv.DictReader(FILE.open())} if FILE.is_file() else set()
    for seed in seeds:
        for name in (known[PLACES[i]] for i in which):
            todo = [m for m in ("retrained", "two_sided", "triplet", "match") if (name, seed, m) not in done and not (m == "retrained" and seed)]
            if not todo: continue
            ref, target = make_reference(setup, sae, latents, name, grades), setup.find(name)
            for method in todo:
                if method == "retrained":
                    empty = {k: None for k in KEPT} | dict(target_recall=recall(answer(gold, setup.tokenizer, ref.target_q, 1), ref.target_q))
                    write(dict(target=name, seed=seed, method=method, **empty, **measured(gold, setup, target))); continue
                run = unlearn(make_task(setup, sae, latents, name, grades, seed=seed), method, seed=seed)
                row, hf = evaluate(ref, method, run), unwrap(setup.model)
                run.restore(setup)
                row["unknown_rate"] /= ref.original["unknown_rate"]                 # as a share of the original's
                write(dict(target=name, seed=seed, method=method, **{k: row[k] for k in KEPT}, **measured(hf, setup, target)))
                print(name, seed, method, flush=True)

if __name__ == "__main__":
    torch.set_num_threads(1)
    seeds, which = (sys.argv[1:] + ["0,1,2", "0,1,2,3,4,5,6,7"][len(sys.argv) - 1:])[:2]
    main([int(s) for s in seeds.split(",")], [int(i) for i in which.split(",")])
