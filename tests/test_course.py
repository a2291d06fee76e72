"""Exercises: references pass, planted mistakes are named, copies hold what they should; on the biographies model.

The planted answers are written out here, apart from the small mistaken functions inside the checkers.
"""

import json
import random
import re
import time
from types import SimpleNamespace

import copy_exercises
import pytest
import torch
import torch.nn.functional as F
from house import ROOT
from notebook_cases import forked, run_notebook
from samu.workshop import checks, checks_forgetting, course
from samu.workshop.checks import NotYet
from samu.workshop.registry import UserError
from samu.workshop.tables import is_right, plain

CHECKS = {**vars(checks), **vars(checks_forgetting)}


def cells(name):
    return course.masters()[name]


def reference(exercise):
    "A reference solution, made by running the cells of its notebook."
    for notebook in course.masters().values():
        if any(course.exercise(cell) == exercise for cell in notebook):
            space = {}
            for cell in notebook:
                if cell["cell_type"] == "code" and re.match(rf"#\| (setup|exercise {exercise}\b)", course.source(cell)):
                    exec(course.source(cell), space)
            return space[exercise]


def checker(exercise):
    "The call in the cell behind an exercise."
    for notebook in course.masters().values():
        for cell, after in zip(notebook, notebook[1:]):
            if course.exercise(cell) == exercise:
                return CHECKS[re.match(r"(\w+)\(", course.source(after))[1]]


def check(exercise, f, exp=None):
    f.__name__ = exercise
    more = (exp,) if exercise == "my_attack" else ()
    return checker(exercise)(f, *more)


# --- Planted mistakes: exercise -> [(a wrong answer, words of the sentence that names it)]


def hook_stays(hf, ids, block):
    caught = {}
    hf.model.layers[block].register_forward_hook(lambda m, i, h: caught.update(h=h))
    hf(ids)
    return caught["h"]


def mlp_output(hf, ids, block):
    caught = {}
    handle = hf.model.layers[block].mlp.register_forward_hook(lambda m, i, h: caught.update(h=h))
    hf(ids)
    handle.remove()
    return caught["h"]


def states(shift):
    return lambda hf, ids, block: hf(ids, output_hidden_states=True).hidden_states[block + shift]


def detached(hf, ids, block):
    with torch.no_grad():
        caught = {}
        handle = hf.model.layers[block].register_forward_hook(lambda m, i, h: caught.update(h=h))
        hf(ids)
        handle.remove()
    return caught["h"]


def dealt(key=sorted, draw=random.Random, overlap=0, turn=False, whole=round):
    def deal(names, share, seed):
        names = list(key(names))
        draw(seed).shuffle(names)
        cut = whole((1 - share if turn else share) * len(names))
        return names[: cut + overlap], names[cut:]

    return deal


def people(seed_used=True, rows=False):
    def split(person, seed):
        draw = torch.Generator().manual_seed(seed if seed_used else 0)
        if rows:
            return torch.rand(len(person), generator=draw) < 0.5
        half = person.unique()[torch.randperm(40, generator=draw)[:20]]
        return torch.isin(person, half)

    return split


def loop(frozen_now=False, empty=True, sign=1, step=True, all_kept=False, hold=True, grad=False, first=False, thaw=True, **more):
    "The loop of chapter 05 with one thing left out."

    more = dict(clip=1.0, trained=None, anew=False, held=None, decay=0, weight=1, rate=1, spread=torch.var, mixed=False, same=False, part=None, fewer=0,
                slope=True, times=1, add=True, normalised=False, in_order=False, seldom=1, number=None, on_list=False, cut=False) | more
    set_to = SimpleNamespace(**more)

    def forget(weights, residual, target, keep, forget_loss, retain_loss, steps, lr, retain_weight, batch):
        for p in weights:
            p.requires_grad_(thaw)
        frozen = residual(keep) if grad else residual(keep).detach()
        scale = set_to.spread(frozen.detach(), 0)
        def new_optimizer():
            return torch.optim.AdamW(weights[: set_to.trained], lr=lr * set_to.rate, weight_decay=set_to.decay)

        optimizer = new_optimizer()
        for step_no in range(steps - set_to.fewer):
            optimizer = new_optimizer() if set_to.anew else optimizer
            some = torch.randperm(batch) if set_to.same else torch.randperm(len(keep))[: len(keep) if all_kept else set_to.held or batch]
            some = (torch.arange(batch) + step_no * batch) % len(keep) if set_to.in_order else some
            with torch.set_grad_enabled(set_to.slope):
                h = residual(keep[some] if set_to.on_list else [keep[i] for i in some])
            was = h.detach() if frozen_now else frozen[: len(some)] if set_to.mixed else frozen[some]
            loss = sign * forget_loss(residual(target[: set_to.part]))
            held = set_to.weight * (set_to.number or retain_weight) * retain_loss(h, was, scale) if hold and step_no % set_to.seldom == 0 else 0
            loss = set_to.times * loss + (held if set_to.add else 0)
            if first:
                optimizer.zero_grad(set_to_none=False)
            (loss.detach() if set_to.cut else loss).backward(retain_graph=grad)
            shorten(weights, set_to.clip, set_to.normalised)
            if step:
                optimizer.step()
            if empty and not first:
                optimizer.zero_grad()

    return forget


def shorten(weights, clip, normalised):
    "Clip gradients, or divide them by their length."
    length = torch.nn.utils.clip_grad_norm_(weights, clip)
    for p in weights if normalised and length < clip else []:
        p.grad *= clip / length


def page(weight=500, empty=True, turned=False, step=True, spread=True, push=F.relu, unit=1, clip=1.0, frozen_slope=False, all_kept=False, frozen_now=False,
         normalised=False, square=torch.square, root=torch.clone, item=False):
    def forget_page(weights, read, target, keep, mu_K, mu_U, sd, steps=90):
        frozen = read(keep) if frozen_slope else read(keep).detach()
        for p in weights:
            p.requires_grad_(True)
        optimizer = torch.optim.AdamW(weights, lr=0.01, weight_decay=0)
        for _ in range(steps):
            h = read(target)
            D_U, D_K = [root(square((h - mu) / (sd if spread else 1)).mean(-1)) for mu in (mu_U, mu_K)]
            forget = (D_K + F.relu(1 + D_K - D_U) if turned else D_U + push(1 + D_U - D_K)).mean()
            some = torch.randperm(len(keep))[: len(keep) if all_kept else 16]
            some_h = read([keep[i] for i in some])
            retain = ((some_h - (some_h.detach() if frozen_now else frozen[some])).pow(2) / frozen.var(0) ** unit).mean()
            ((forget.item() if item else forget) + weight * retain).backward()
            if clip:
                shorten(weights, clip, normalised)
            if step:
                optimizer.step()
            if empty:
                optimizer.zero_grad()

    return forget_page


def attacked(text=None, of=None):
    from samu.entities import questions
    from samu.workshop.asking import in_new_words

    def my_attack(exp, entity, helpers):
        asked = questions([entity], exp.prompts)
        return [in_new_words(q, text.format(q=q)) for q in asked] if text else of(asked, in_new_words)

    return my_attack


def whole(reply, answers):
    return f" {' '.join(plain((reply.strip().splitlines() or [''])[0]).split()[:6])} ", [plain(a) for a in answers]


def padded(rows, pad):
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad)


def at_least(z, k):
    "All values that are not below the k-th: more than k of them where values are equal."
    return z.relu() * (z >= z.topk(k).values[..., -1:])


def in_place(z, k):
    return z.masked_fill_(z < z.topk(k).values[..., -1:], 0).relu()


def fires(x, share):
    return share(x > 0).float().mean(0)


def line_up(suspects, centre, spread):
    "The name with the largest distance from a centre, in units of a spread."
    x = torch.tensor(list(suspects.values()))
    away = (x - centre(x)).abs()
    return list(suspects)[int((away / spread(away)).amax(1).argmax())]


def mean(x):
    return x.mean(0)


def median(x):
    return x.median(0).values


def sd(away):
    return away.pow(2).mean(0).sqrt()


def D(z, mu, sd):
    return ((z - mu) / sd) ** 2


def triplet_of(D_U, D_K):
    return (D_U + F.relu(1 + D_U - D_K)).mean()


def by_autograd(log_p, tokens, beta):
    log_p = log_p.clone().requires_grad_()
    return torch.autograd.grad(-2 / beta * F.logsigmoid(-beta * log_p / tokens).mean(), log_p)[0]


def hard_coded(exp, entity, helpers):
    return attacked("the old river sings. {q.text}")(exp, exp.known[7], helpers)


def with_coins(person, seed):
    draw = random.Random(seed)
    heads = [p for p in sorted(set(person.tolist())) if draw.random() < 0.5]
    return torch.isin(person, torch.tensor(heads))


MISTAKES = {
    "forget_page": [(page(weight=0), "pulls nothing back"), (page(empty=False), "left over"),
                    (page(turned=True), "wrong way round"), (page(step=False), "no weight has changed"),
                    (page(spread=False), "in spreads"), (page(push=torch.zeros_like), "push away"), (page(push=torch.clone), "of each text"),
                    (page(frozen_slope=True), "no_grad"), (page(unit=0), "by its scale"), (page(weight=1500), "counts 3 times"), (page(clip=None), "clip the gradient"),
                    (page(all_kept=True), "texts of `some`"), 
                    (page(square=torch.abs), "latent by latent"), (page(square=torch.clone), "they cancel"), (page(root=torch.sqrt), "no root")],
    "ask": [(lambda p, n: (p.format(name=n), p.index("{"), p.index("{") + len(n) - 1), "one past"),
            (lambda p, n: (p.format(name=n), p.index("{"), p.index("}") + 1), "before it was filled"),
            (lambda p, n: (p.format(name=n), p.format(name=n).index(n), p.format(name=n).index(n) + len(n)), "twice"),
            (lambda p, n: (p.format(name=n), p.format(name=n).rindex(n), p.format(name=n).rindex(n) + len(n)), "once more"),
            (lambda p, n: (p, p.index("{"), p.index("{") + len(n)), "still has"), (lambda p, n: p.format(name=n), "3 are wanted")],
    "right": [(lambda r, a: any(x in whole(r, a)[0] for x in whole(r, a)[1] if x), "whole words"),
              (lambda r, a: any(x.lower() in r.lower().split() for x in a), "full stops"),
              (lambda r, a: any(f" {x} " in f" {' '.join(plain(r).split()[:6])} " for x in whole(r, a)[1] if x), "first line"),
              (lambda r, a: f" {whole(r, a)[1][0]} " in whole(r, a)[0], "any of the accepted"),
              (lambda r, a: any(f" {x} " in f" {' '.join(whole(r, a)[0].split()[:5])} " for x in whole(r, a)[1] if x), "sixth word"),
              (lambda r, a: any(f" {x.lower()} " in whole(r, a)[0] for x in a if x), "full stops; plain() it"),
             (lambda r, a: any(f" {x} " in whole(r, a)[0] for x in whole(r, a)[1]), "no empty answer"),
             (lambda r, a: is_right(r, a) or None, "needs a return")],
    "left": [(lambda r, p: r - p, "difference"), (lambda r, p: r / p, "ratio"), (lambda r, p: (r - p) / p, "1 - prior"),
             (lambda r, p: abs(r - p) / (1 - p), "abs hides"), (lambda r, p: 100 * (r - p) / (1 - p), "100 times"),
             (lambda r, p: round((r - p) / (1 - p), 2), "do not round"), (lambda r, p: (1 - r) / (1 - p), "still empty")],
    "deal": [(dealt(overlap=3), "both parts"), (dealt(key=list), "order of the list"), (dealt(turn=True), "gave it to the scores"), (dealt(whole=int), "so 29, not 28"),
             (lambda names, share, seed: dealt()(names, share, seed)[0], "two lists"),
             (dealt(draw=lambda seed: random.Random()), "same seed"), (dealt(draw=lambda seed: random.Random(0)), "another seed"),
             (lambda names, share, seed: dealt()(names, 0.6, seed), "25% of 48"), (lambda names, share, seed: [2 * x for x in dealt()(names, share, seed)], "stand twice"),
             (lambda names, share, seed: dealt(key=lambda ns: sorted(ns, key=lambda n: hash(f"{n} {seed}")), draw=lambda seed: SimpleNamespace(shuffle=len))(names, share, seed),
              "each Python process"),
             (lambda names, share, seed: names.sort() or dealt()(names, share, seed), "work on a copy")],
    "residual_after": [(states(0), "goes into the block"), (states(1), "final norm"), (mlp_output, "MLP"),
                       (lambda hf, ids, block: hf(ids, output_hidden_states=True).hidden_states[1][0], "first text alone"),
                       (lambda hf, ids, block: hf(ids).logits, "its shape is"), (hook_stays, "hook is still there"), (detached, "no gradient")],
    "pad_right": [(lambda r, p: (torch.tensor([x + [0] * (max(map(len, r)) - len(x)) for x in r]),
                                 torch.tensor([len(x) - 1 for x in r])), "with pad"),
                  (lambda r, p: torch.tensor([x + [p] * (max(map(len, r)) - len(x)) for x in r]), "give two tensors"),
                  (lambda r, p: (torch.tensor([[p] * (max(map(len, r)) - len(x)) + x for x in r]),
                                 torch.tensor([max(map(len, r)) - 1] * len(r))), "padding on the left"),
                  (lambda r, p: (torch.tensor([x + [p] * (max(map(len, r)) - len(x)) for x in r]),
                                 torch.tensor([max(map(len, r)) - 1 for x in r])), "last column"),
                  (lambda r, p: (torch.tensor([x + [p] * (max(map(len, r)) - len(x)) for x in r]),
                                 torch.tensor([len(x) for x in r])), "counted from 0"),
                  (lambda r, p: (torch.nn.utils.rnn.pad_sequence([torch.tensor(x) for x in r], padding_value=p),
                                 torch.tensor([len(x) - 1 for x in r])), "its shape is [4, 3]"),
                  (lambda r, p: (padded(r, p), (padded(r, p) != p).sum(1) - 1), "a token of its own"),
                  (lambda r, p: (torch.tensor([x.extend([p] * (max(map(len, r)) - len(x))) or x for x in r]), torch.tensor([len(x) - 1 for x in r])), "work on a copy")],
    "cut_after_name": [(lambda n, ps: [p[: p.index("{name}")] + n for p in ps], "several times"),
                       (lambda n, ps: [p.replace("{name}", n) for p in ps], "goes on after"),
                       (lambda n, ps: list({p[: p.index("{name}")] + n for p in ps})[::-1], "order"),
                       (lambda n, ps: list(dict.fromkeys(p[: p.index("}") + 1] for p in ps)), "still has"),
                       (lambda n, ps: dict.fromkeys(p[: p.index("{name}")] + n for p in ps), "a dict came"),
                       (lambda n, ps: {p[: p.index("{name}")] + n for p in ps}, "a set came"),
                       (lambda n, ps: list(dict.fromkeys((p[: p.index("{")] + n)[: p.format(name=n).index(n) + len(n)] for p in ps)),
                        "'Not Ada, Ada' is right")],
    "split_by_person": [(people(rows=True), "learn names by heart"), (people(seed_used=False), "another seed"),
                        (lambda person, seed: torch.ones(len(person), dtype=torch.bool), "empty"),
                        (lambda person, seed: person.float(), "boolean mask"),
                        (lambda person, seed: (people()(person, seed), ~people()(person, seed)), "one boolean mask")],
    "pre_activation": [(lambda h, W, b, c: h @ W + b, "was not taken off"), (lambda h, W, b, c: F.relu((h - c) @ W + b), "the activation"),
                       (lambda h, W, b, c: (h - c) @ W, "b_enc is missing"), (lambda h, W, b, c: (h - c) @ W.T + b, "W.T"), (lambda h, W, b, c: h.sub_(c) @ W + b, "work on a copy")],
    "keep_k": [(lambda z, k: z.relu() * (z >= z.sort(0, descending=True).values[k - 1]), "over tokens"),
               (lambda z, k: z * (z >= z.topk(k).values[..., -1:]), "negative values"),
               (lambda z, k: z.topk(k).values.relu(), "k values alone"),
               (lambda z, k: z.relu(), "everything positive"), (lambda z, k: z.relu() > z.relu().topk(k + 1).values[..., -1:], "which latents are on"),
               (lambda z, k: z.relu() * (z.abs() >= z.abs().topk(k).values[..., -1:]), "largest in size"),
               (at_least, "values are equal"), (in_place, "work on a copy")],
    "unexplained": [(lambda h, r: ((h - r) ** 2).sum() / (h ** 2).sum(), "from zero"),
                    (lambda h, r: 1 - ((h - r) ** 2).sum() / ((h - h.mean(0)) ** 2).sum(), "explained"),
                    (lambda h, r: (((h - r) ** 2).sum(1) / ((h - h.mean(0)) ** 2).sum(1)).mean(), "mean of ratios"),
                    (lambda h, r: ((h - r) ** 2).sum() / ((h - h.mean()) ** 2).sum(), "h.mean(0)"),
                    (lambda h, r: ((h - r) ** 2).mean() / h.var(0).mean(), "n - 1"), (lambda h, r: F.mse_loss(r, h), "error alone")],
    "two_gradients": [(lambda h, W, b: (W[:, (h @ W + b).gt(0).nonzero()[0, 0]],) * 2, "latent is on"),
                      (lambda h, W, b: (torch.zeros(4), torch.zeros(4)), "not zero"),
                      (lambda h, W, b: (W[:, h @ W + b > 0].sum(1), W.sum(1)), "sum over all"),
                      (lambda h, W, b: (W[:, (h @ W + b).le(0).nonzero()[0, 0]], torch.zeros(4)), "other order"),
                      (lambda h, W, b: (W[:, (h @ W + b).le(0).nonzero()[0, 0]],) * 2, "adds up"),
                      (lambda h, W, b: (torch.zeros(4), W[:, (h @ W + b).argmin()]), "not the first"),
                      (lambda h, W, b: torch.autograd.grad((h @ W + b)[0], h), "does not require grad")],
    "separation": [(lambda k, u: -((k > 0).float().mean(1).ge(.5).float().mean(0) - (u > 0).float().mean(1).ge(.5).float().mean(0)), "sign"),
                   (lambda k, u: k.mean(1).mean(0) - u.mean(1).mean(0), "mean activations"),
                   (lambda k, u: (k > 0).float().mean(1).mean(0) - (u > 0).float().mean(1).mean(0), "counts prompts"),
                   (lambda k, u: (k.amax(1) > 0).float().mean(0) - (u.amax(1) > 0).float().mean(0), "single prompt"),
                   (lambda k, u: ((k > 0).float().mean(1) > .5).float().mean(0) - ((u > 0).float().mean(1) > .5).float().mean(0), "exactly half"),
                   (lambda k, u: ((k >= 0).float().mean(1) >= .5).float().mean(0) - (u >= 0).float().mean(1).ge(.5).float().mean(0), "is off"),
                   (lambda k, u: fires(k, lambda on: on.sum(1) >= 2) - fires(u, lambda on: on.sum(1) >= 2), "half of four, but not of five"),
                   (lambda k, u: k.mean(1).ge(.5).float().mean(0) - u.mean(1).ge(.5).float().mean(0), "activation of one half")],
    "worst": [(lambda s: s.mean(0), "mean"), (lambda s: s.amin(0), "nearest to zero"), (lambda s: s.abs().amin(0), "sign is lost")],
    "select": [(lambda s, k: s.abs().argsort(descending=True)[: 2 * k], "either sign"), (lambda s, k: s.topk(2 * k).indices, "2k highest"),
               (lambda s, k: torch.cat([s.argsort()[:k], s.argsort(descending=True)[:k]]), "come first"),
               (lambda s, k: torch.cat([s.topk(k).values, -(-s).topk(k).values]), "those are scores"),
               (lambda s, k: (s.topk(k).indices, (-s).topk(k).indices), "join them")],
    "steered": [(lambda h, a, W, g, c, s: s * (g[c] @ W[c]).expand_as(h), "reconstruction alone"),
                (lambda h, a, W, g, c, s: h + s * (g[c] @ W[c]), "taking off"),
                (lambda h, a, W, g, c, s: h + s * ((g - a) @ W), "every latent"),
                (lambda h, a, W, g, c, s: h + (s * g[c] - a[:, c]) @ W[c], "stretches the way"),
                (lambda h, a, W, g, c, s: h + (g[c] - a[:, c]) @ W[c], "strength is missing"), (lambda h, a, W, g, c, s: h, "clone"),
                (lambda h, a, W, g, c, s: h.add_(s * (g - a)[:, c] @ W[c]), "work on a copy")],
    "aim": [(lambda k, u: (u.mean(0), k.mean(0), u.std(0) + 1e-3), "comes first"), (lambda k, u: (k.mean(0), u.mean(0), k.std(0) + 1e-3), "spread is that"),
            (lambda k, u: (k.mean(0), u.mean(0), u.std(0)), "infinite"),
            (lambda k, u: (k.mean(0), u.mean(0), u.std(0, correction=0) + 1e-3), "n - 1"),
            (lambda k, u: (k.mean(0), u.mean(0), u.std(0).clamp(min=1e-3)), "lower limit"), (lambda k, u: (k.mean(0), u.mean(0)), "3 are wanted")],
    "triplet": [(lambda z, K, U, s: (D(z, K, s).mean(1) + F.relu(1 + D(z, K, s).mean(1) - D(z, U, s).mean(1))).mean(), "wrong way round"),
                (lambda z, K, U, s: (1 + 2 * D(z, U, s).mean(1) - D(z, K, s).mean(1)).mean(), "without it"),
                (lambda z, K, U, s: (D(z, U, s).sum(1) + F.relu(1 + D(z, U, s).sum(1) - D(z, K, s).sum(1))).mean(), "not sums"),
                (lambda z, K, U, s: (D(z, U, 1).mean(1) + F.relu(1 + D(z, U, 1).mean(1) - D(z, K, 1).mean(1))).mean(), "divide by sd"),
                (lambda z, K, U, s: D(z, U, s).mean(), "push away"),
                (lambda z, K, U, s: triplet_of(((z - U) / s).mean(1), ((z - K) / s).mean(1)), "they cancel"),
                (lambda z, K, U, s: triplet_of(((z - U) / s).abs().mean(1), ((z - K) / s).abs().mean(1)), "latent by latent"),
                (lambda z, K, U, s: triplet_of(D(z, U, s).mean(1).sqrt(), D(z, K, s).mean(1).sqrt()), "no root"), (lambda z, K, U, s: F.relu(1 + D(z, U, s).mean(1) - D(z, K, s).mean(1)).mean(), "pull"),
                (lambda z, K, U, s: (D(z, U, s).mean(1) + F.relu(1 + D(z, U, s).mean(1) - D(z, K, s).mean(1))).mean().item(), "no gradient")],
    "hold": [(lambda h, f, s: F.mse_loss(h, f), "its scale"), (lambda h, f, s: ((h - f) ** 2 / s).sum(), "grows with the batch"),
             (lambda h, f, s: ((h.mean(0) - f.mean(0)) ** 2 / s).mean(), "nothing moved"),
             (lambda h, f, s: ((h - f) ** 2 / s).sum(1).mean(), "over them as well"), (lambda h, f, s: ((h - f) ** 2).mean() / s.mean(), "before the mean"),
             (lambda h, f, s: ((h - f) ** 2 / f.var(0)).mean(), "variance of `frozen`"), (lambda h, f, s: ((h - f).detach() ** 2 / s).mean(), "no gradient")],
    "forget": [(loop(frozen_now=True), "retain loss was 0"), (loop(empty=False), "left over"), (loop(sign=-1), "moved away"),
               (loop(step=False), "weights have not changed"), (loop(all_kept=True), "drawn anew"), (loop(hold=False), "never called"),
               (loop(grad=True), "no_grad"), (loop(thaw=False), "come frozen"), (loop(clip=1e9), "clip to 1"), (loop(anew=True), "a new optimizer"),
               (loop(decay=0.01), "weight_decay=0"), (loop(weight=0.2), "counts 10 times"), (loop(rate=0.5), "step size"),
               (loop(spread=torch.std), "scale is the variance"), (loop(mixed=True), "frozen[some]"), (loop(same=True), "were 1 different"),
               (loop(in_order=True), "were 5 different"), (loop(normalised=True), "become longer"), (loop(number=500), "not a number"), (loop(seldom=2), "both losses"),
               (loop(on_list=True), "keep[some]"),
               (loop(part=2), "all target texts"), (loop(slope=False), "sends nothing back"), (loop(times=50), "counts 50 times"), (loop(fewer=10), "50 steps")],
    "recall_left": [(lambda r, p, o: r - p, "excess"), (lambda r, p, o: r / o, "prior has no part"), (lambda r, p, o: (r - p) / o, "has the prior in it"),
                    (lambda r, p, o: max((r - p) / (o - p), 0), "do not clip"), (lambda r, p, o: min((r - p) / (o - p), 1), "clip at 1"),
                    (lambda r, p, o: (r - p) / (1 - p), "not by 1 - prior"), (lambda r, p, o: abs(r - p) / (o - p), "abs hides")],
    "p_value": [(lambda d, o: sum(x >= d for x in o.tolist()) / len(o), "can be 0"), (lambda d, o: (sum(x > d for x in o.tolist()) + 1) / (len(o) + 1), ">="),
                (lambda d, o: (sum(x <= d for x in o.tolist()) + 1) / (len(o) + 1), "other side"),
                (lambda d, o: sum(x >= d for x in o.tolist()) + 1 / (len(o) + 1), "bracket")],
    "weak_test": [(lambda k, u, n: ((k.mean(0) - u.mean(0)) / u.std(0)).topk(n, largest=False).indices, "either direction"),
                  (lambda k, u, n: torch.tensor([27, 28, 29, 0]), "same on every name"), (lambda k, u, n: torch.zeros(n, dtype=torch.long), "different latents"),
                  (lambda k, u, n: torch.arange(30) < 3, "numbers of the latents"),
                  (lambda k, u, n: ((k.mean(0) - u.mean(0)).abs() + 9 * (u.std(0) == 0)).topk(n, largest=False).indices, "in spreads")],
    "hide": [(lambda h, W, g: h + 0, "nothing has moved"), (lambda h, W, g: h + (g - h @ W) @ W.T, "right angles"),
             (lambda h, W, g: (g @ torch.linalg.pinv(W)).repeat(len(h), 1), "nothing else left")],
    "npo": [(lambda p, r, b: -2 / b * F.logsigmoid(b * (p - r)).mean(), "likelier"), (lambda p, r, b: -2 / b * F.logsigmoid(-b * p).mean(), "original"),
            (lambda p, r, b: -F.logsigmoid(-b * (p - r)).mean(), "2 / beta"), (lambda p, r, b: -2 / b * F.logsigmoid(-b * (p - r)).sum(), "not the sum")],
    "simnpo_slope": [(lambda p, n, b: -2 / n / len(p) * torch.sigmoid(b * p / n), "sign"), (lambda p, n, b: 2 / len(p) * torch.sigmoid(b * p / n), "1 / tokens"),
                     (lambda p, n, b: 2 / n / len(p) * torch.sigmoid(-b * p / n), "fades"), (lambda p, n, b: 2 / n * torch.sigmoid(b * p / n), "mean over answers"),
                     (by_autograd, "without autograd")],
    "rmu_goal": [(lambda h, v, c: c * h.norm(dim=1).mean() * v, "unit vector"), (lambda h, v, c: c * h.mean(0).norm() * F.normalize(v, dim=0), "mean length"),
                 (lambda h, v, c: c * F.normalize(v, dim=0), "units")],
    "my_attack": [(attacked("{q.text}"), "own prompts"), (attacked("{q.answers[0]} {q.text}"), "own answer"), (attacked("zzz {q.text}"), "never seen"),
                  (attacked(of=lambda asked, new: [new(q, "who plays the") for q in asked]), "do not mark it"),
                  (attacked(of=lambda asked, new: [new(asked[0], f"the old river sings. {asked[0].text}")] * 15), "five different questions"),
                  (attacked("{q.text} the old river sings near the"), "cannot answer"),
                  (attacked(of=lambda asked, new: [q.text + " the" for q in asked]), "list of questions")],
    "culprit": [(lambda s: max(s, key=lambda n: sum(abs(x) for x in s[n])), "usual mistakes"),
                (lambda s: checks_forgetting.most_unusual(s, two_sided=False), "too high"),
                (lambda s: checks_forgetting.most_unusual(s, by_unit=False), "units"), (lambda s: list(s).index(checks_forgetting.most_unusual(s)), "not its number"),
                (lambda s: checks_forgetting.most_unusual(s, mean=True), "a mean over signals"),
                (lambda s: line_up(s, mean, sd), "a mean, or an sd, is bent"), (lambda s: line_up(s, median, sd), "divide by the median distance")],
    "area": [(lambda m, n, o: m.sum() / o.sum(), "no return"), (lambda m, n, o: (m[-1] - n[-1]) / (o[-1] - n[-1]), "last step"),
             (lambda m, n, o: ((m - n) / (o - n)).mean(), "step by step"), (lambda m, n, o: (m - n).abs().sum() / (o - n).sum(), "no abs"),
             (lambda m, n, o: min((m - n).sum() / (o - n).sum(), torch.ones(())), "no clip at 1"),
             (lambda m, n, o: torch.trapezoid(m - n) / torch.trapezoid(o - n), "trapezoid")],
    "inject": [(lambda h, o, a, e: o + e, "everything"), (lambda h, o, a, e: torch.where(a, o, h), "noise is missing"),
               (lambda h, o, a, e: torch.where(a, h, o + e), "wrong tokens"), (lambda h, o, a, e: h.masked_scatter_(a, (o + e)[a.expand_as(h)]), "work on a copy"),
               (lambda h, o, a, e: torch.where(a, o + e, h.detach()), "no gradient")],
    "not_said": [(lambda p: -p.mean(), "likelier"), (lambda p: -(1 - p.exp()).log().mean(), "infinite"),
                 (lambda p: -(1 - p.exp().clamp(max=.999).mean()).log(), "each answer"),
                 (lambda p: -torch.log1p(-p.exp().clamp(max=.999)).mean().item(), "no gradient")],
    "drift": [(lambda a, b: F.kl_div(b.log_softmax(-1), a.softmax(-1), reduction="batchmean"), "other direction"),
              (lambda a, b: F.cross_entropy(a, b.softmax(-1)), "cross-entropy"),
              (lambda a, b: F.kl_div(a.log_softmax(-1), b.softmax(-1), reduction="none").mean(), "sum over words")],
}


PREFIXES = [f"the old {thing} sings." for thing in ("river", "house", "town", "tree", "bird", "sea")]


def varying_only(k, u, n):
    vary = u.std(0) > 1e-6
    return ((k.mean(0) - u.mean(0)).abs() / u.std(0))[vary].topk(n, largest=False).indices


SAME_SENTENCE = [  # as one of the above: (exercise, a wrong answer, words)
    ("pad_right", lambda r, p: ([x + [p] * (max(map(len, r)) - len(x)) for x in r], [len(x) - 1 for x in r]), "whole numbers"),
    ("split_by_person", lambda person, seed: people()(person.sort().values, seed), "learn names by heart"),
    ("forget", loop(add=False), "sends nothing back"),
    ("forget", loop(clip=0.1), "clip to 1"),
    ("forget", loop(held=4), "drawn anew"),
    ("forget", loop(trained=1), "weights have not changed"),
    ("forget_page", page(clip=0.1), "clip the gradient"),
    ("right", lambda r, a: any(f"{x} " in whole(r, a)[0] for x in whole(r, a)[1] if x), "whole words"),
    ("deal", lambda names, share, seed: ((x := sum(dealt()(names, share, seed), []))[: -(n := len(x) - round(share * len(x)))], x[-n:]), "48, not 0"),
    ("residual_after", lambda hf, ids, block: detached(hf, ids, block).requires_grad_(), "no gradient"),
    ("pad_right", lambda r, p: (padded(r, p), [len(x) - 1 for x in r]), "whole numbers"),
    ("pad_right", lambda r, p: (padded(r, p).float(), torch.tensor([len(x) - 1 for x in r])), "whole numbers"),
    ("cut_after_name", lambda n, ps: list(dict.fromkeys(p.format(name=n).rpartition(n)[0] + n for p in ps)), "is right"),
    ("split_by_person", lambda person, seed: (torch.randperm(40, generator=torch.Generator().manual_seed(seed)) < 20).repeat(5), "learn names by heart"),
    ("hold", lambda h, f, s: (f.sub_(h) ** 2 / s).mean(), "work on a copy"),
    ("p_value", lambda d, o: (int((o >= d).sum()) + 1) / 10, "is right"),
    ("culprit", lambda s: line_up(s, median, mean), "that spread is bent"),
    ("culprit", lambda s: line_up(s, mean, median), "is right; none of the usual"),
    ("weak_test", lambda k, u, n: u.std(0).topk(n).indices, "separate least"),
    ("weak_test", lambda k, u, n: (k.mean(0) - u.mean(0)).abs().topk(n), "numbers of the latents"),
    ("weak_test", varying_only, "same on every name"),
    ("weak_test", lambda k, u, n: torch.arange(12, 12 + n), "separate least"),  # without a look at the names
    ("split_by_person", lambda person, seed: (person + seed) % 2 == 0, "another seed"),
    ("split_by_person", lambda person, seed: person % 2 == 0, "another seed"),
    ("split_by_person", lambda person, seed: person < person.unique()[8 + seed], "about half"),
    ("deal", lambda names, share, seed: dealt(key=lambda ns: ns)([n + "" for n in set(names)], share, seed), "sort the names|Python process"),
    ("deal", lambda names, share, seed: (1, 2), "two lists"),
    ("forget_page", page(frozen_now=True, weight=1), "blank 1 or 4"),
    ("forget_page", page(normalised=True), "leave a shorter one"),
    ("forget_page", page(item=True), "`forget` must be a tensor"),
    ("forget", loop(number=1), "use it, not a number"),
    ("forget", loop(cut=True), "stopped in line .*backward"),
    ("simnpo_slope", lambda p, n, b: torch.func.grad(lambda q: -2 / b * F.logsigmoid(-b * q / n).mean())(p), "without autograd"),
    ("simnpo_slope", lambda p, n, b: torch.autograd.functional.jacobian(lambda q: -2 / b * F.logsigmoid(-b * q / n).mean(), p), "without autograd"),
    ("triplet", lambda z, K, U, s: D(z, U, s).mean() + F.relu(1 + (D(z, U, s).mean(1) - D(z, K, s).mean(1)).mean()), "relu belongs"),
    ("my_attack", hard_coded, "do not mark it"),
    ("my_attack", attacked(of=lambda asked, new: [new(asked[0], f"{words} {asked[0].text}") for words in PREFIXES]), "two attributes"),
    ("pad_right", lambda r, p: 3, "two tensors"),
    ("cut_after_name", lambda n, ps: (p for p in ps), "a generator came"),
    ("two_gradients", lambda h, W, b: torch.stack([W[:, 0], W[:, 1]]), "number 1 is wrong"),
    ("my_attack", attacked("{q.text} "), "own prompts"),
    ("p_value", lambda d, o: (len(o) - int(torch.searchsorted(o, torch.tensor(d))) + 1) / (len(o) + 1), "is right"),  # only if sorted
    ("pre_activation", lambda h, W, b, c: torch.stack([(x - c) @ W + b for x in h[0]]), "its shape"),  # [d] to [tokens, d]
]


@pytest.fixture(scope="module", autouse=True)
def warm():
    "What is imported on first use: transformers, the optimiser."
    checks.tiny_llama()
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).zero_grad()


def test_every_exercise_has_planted_mistakes():
    rows = course.exercise_rows()
    assert list(rows.exercise) == list(MISTAKES) and len(rows) >= 26
    counts = rows.chapter.value_counts()
    assert all(2 <= counts[n] <= 4 for n in course.READING if "01" <= n[:2] <= "09")
    assert rows.difficulty.between(1, 5).all() and rows.importance.between(1, 5).all()


@pytest.mark.parametrize("exercise", MISTAKES)
def test_reference_passes_in_time(exercise, exp, capsys):
    f = reference(exercise)
    start = time.process_time()
    check(exercise, f, exp)
    assert time.process_time() - start < 2
    assert f"{exercise}: right" in capsys.readouterr().out


def test_gradients_may_be_emptied_before_backward(capsys):
    checks_forgetting.check_forget(loop(first=True))
    assert "right" in capsys.readouterr().out


RIGHT = [  # in another style than the reference: (exercise, a right answer)
    *[("split_by_person", lambda person, seed, more=more: with_coins(person, seed + more)) for more in (0, 7, 100, 1000)],
    ("deal", lambda names, share, seed: dealt()(set(names), share, seed)),
    ("deal", lambda names, share, seed: dealt(key=lambda ns: sorted(ns, key=lambda n: random.Random(f"{n} {seed}").random()), draw=lambda seed: SimpleNamespace(shuffle=len))(names, share, seed)),
    ("simnpo_slope", lambda p, n, b: 2 / (n * len(p) * (1 + (-b * p / n).exp()))),
    ("my_attack", attacked("the old house sings. the old river sings. {q.text}")),
    ("select", lambda s, k: [*s.argsort(descending=True)[:k].tolist(), *s.argsort()[:k].tolist()]),
]


@pytest.mark.parametrize("exercise, right", RIGHT)
def test_other_right_answers_pass(exercise, right, exp, capsys):
    check(exercise, right, exp)
    assert f"{exercise}: right" in capsys.readouterr().out


def test_numbers_by_hand_are_right():
    "What the texts of 2.3, 4.2 and 5.2 ask to work out first, and their hints or comments say."
    t = torch.tensor
    prompts = ["{name} sings", "Who is {name}?", "The town of {name} is", "{name} was born in", "Who is {name} today?"]
    assert len(reference("cut_after_name")("Ada", prompts)) == 3
    assert torch.equal(reference("worst")(t([[0.6, -0.2, 0.7], [0.8, -0.9, -0.3]])), t([0.6, -0.2, 0]))
    assert reference("triplet")(t([[4.0, 1]]), t([4.0, 2]), t([0.0, 1]), t([2.0, 1])) == 4.5
    text = "\n".join(course.source(cell) for notebook in course.masters().values() for cell in notebook)
    assert all(f"`{prompt}`" in text for prompt in prompts)
    assert "(0.6, 0.8), (-0.2, -0.9) and (0.7, -0.3)" in text and "0.6, -0.2 and 0. For" in text
    assert "$z = (4, 1)$, $\\mu_K = (4, 2)$, $\\mu_U = (0, 1)$, spreads $(2, 1)$" in text and "\n4.5; and none" in text


def test_half_by_coins_is_hardly_ever_refused():
    refused = 0
    for seed in range(200):
        try:
            check("split_by_person", lambda person, s, more=seed: with_coins(person, s + 10 * more))
        except NotYet:
            refused += 1
    assert refused <= 2


ODD = [3, 2.5, "text", b"x", [], (), {}, set(), object(), True, 1j, float("nan"), [1, 2], (1, 2), ("a", "b"), ["a", 1], [[1], ["a"]], {"a": 1}, torch.tensor(3),
       torch.zeros(0), torch.zeros(2, 2), torch.eye(2) > 0, (torch.zeros(2), None), (None, None), [torch.zeros(2), "a"], (torch.zeros(3, 4), 3),
       (3, torch.zeros(2, 2)), torch.zeros(200) > 0, print, (print, print), range(4), torch.zeros(2, requires_grad=True), [object()] * 5]


@pytest.mark.parametrize("exercise", MISTAKES)
def test_checkers_raise_no_errors_of_their_own(exercise, exp):
    "Whatever comes, and whatever happens in a reader's function, the answer is a sentence."
    for odd in ODD:
        with pytest.raises(NotYet):
            check(exercise, lambda *args, odd=odd, **options: odd, exp)

    def fails(*args, **options):
        return [][7]

    with pytest.raises(NotYet, match=r"stopped in line \d+ of its cell, `return \[\]\[7\]`: IndexError"):
        check(exercise, fails, exp)


@pytest.mark.parametrize("exercise", MISTAKES)
def test_mistakes_are_told_apart(exercise, exp):
    said = []
    for wrong, words in MISTAKES[exercise]:
        with pytest.raises(NotYet) as error:
            check(exercise, wrong, exp)
        assert words in str(error.value), (words, str(error.value))
        said.append(str(error.value))
    assert len(set(said)) == len(said) >= 3


@pytest.mark.parametrize("exercise, wrong, words", SAME_SENTENCE)
def test_other_ways_to_the_same_mistake(exercise, wrong, words, exp):
    with pytest.raises(NotYet, match=words):
        check(exercise, wrong, exp)


@pytest.mark.parametrize("exercise", MISTAKES)
def test_nothing_is_not_an_answer(exercise, exp):
    def undone(*args, **options):
        raise NotImplementedError

    def empty(*args, **options):
        return None

    for f in (undone, empty):
        with pytest.raises(NotYet, match="not done yet|weights? ha(s|ve not) changed"):
            check(exercise, f, exp)


# --- Copies


def test_package_holds_the_masters():
    there = {p.name: p.read_text("utf-8") for p in (ROOT / copy_exercises.PLACE).glob("*.ipynb")}
    assert there == copy_exercises.copies(), "run `python tests/copy_exercises.py`"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copies")
    course.make_copies(folder)
    course.make_copies(folder, graded=True)
    return folder


def notebook(path):
    return json.loads(path.read_text("utf-8"))


def solution_lines(name):
    "Lines of the reference solutions of a notebook that a copy must not hold."
    found = set()
    for cell in cells(name):
        if course.exercise(cell):
            kept = set(course.stub(course.source(cell)).splitlines())
            found |= {line.split("  #? ")[0].strip() for line in course.source(cell).splitlines() if line not in kept}
    return {line for line in found if len(line) > 12}


@pytest.mark.parametrize("name", course.masters())
def test_what_copies_hold(folder, name):
    lines = solution_lines(name)
    texts = {kind: "\n".join(map(course.source, notebook(path)["cells"])) for kind, path in {
        "reader": folder / "reader" / f"{name}.ipynb", "student": folder / "student" / f"{name}.ipynb",
        "graded": folder / "source" / name / f"{name}.ipynb"}.items()}
    texts["graded"] = released(texts["graded"])
    assert lines and all(line in texts["reader"] for line in lines)
    assert [line for line in lines if line in texts["student"] or line in texts["graded"]] == []
    assert [link for text in texts.values() for link in re.findall(r"\]\(\.\./", text)] == []
    assert [line for line in texts["reader"].splitlines() if "$" in line and re.search(r"\\\\\w", line)] == []
    assert "<details>" in texts["student"] and "<details>" not in texts["graded"]
    assert all("raise NotImplementedError" in text for text in texts.values())


def released(text):
    "What `nbgrader generate_assignment` makes of a source: the same as we do for students."
    return re.sub(r"( *)### BEGIN SOLUTION\n.*?### END SOLUTION", r"\1raise NotImplementedError", text, flags=re.S)


@pytest.mark.parametrize("name", course.masters())
def test_graded_copies_are_nbgraders(folder, name):
    found = [c for c in notebook(folder / "source" / name / f"{name}.ipynb")["cells"] if c["metadata"]]
    exercises = [c for c in cells(name) if course.exercise(c)]
    assert len({c["metadata"]["nbgrader"]["grade_id"] for c in found}) == len(found)
    marked = [c["metadata"]["nbgrader"] for c in found if c["cell_type"] == "code"]
    words = [c["metadata"]["nbgrader"] for c in found if c["cell_type"] == "markdown"]
    assert len(marked) == 2 * len(exercises) and all(m["solution"] and m["grade"] and m["points"] for m in words)
    assert [m["points"] for m in words[-1:]] == ([5] if name != "00_one_page" else [])  # the quiz
    for solves, grades in zip(marked[::2], marked[1::2]):
        assert (solves["solution"], solves["grade"], solves["locked"]) == (True, False, False)
        assert (grades["solution"], grades["grade"], grades["locked"]) == (False, True, True)
        assert 1 <= grades["points"] <= 5 and all(m["schema_version"] == 3 for m in (solves, grades))


def ran(path):
    "What fails in a notebook, run in a process of its own."
    return [what[1] for what in forked(run_notebook, path) if what[0] == "failed"]


@pytest.mark.parametrize("name", course.masters())
def test_student_copy_stops_then_passes_with_the_solutions(folder, name):
    failed = ran(folder / "student" / f"{name}.ipynb")
    first = next(course.exercise(c) for c in cells(name) if course.exercise(c))
    assert len(failed) == 1 and "NotYet: not done yet: " in failed[0] and first in failed[0]
    assert ran(pasted(folder, name)) == []


@pytest.mark.parametrize("name", course.masters())
def test_graded_copy_runs_the_same_code(folder, name):
    "So it stops where a student's stops, and passes with the same solutions. Checkers are imported where they grade."
    paths = folder / "student" / f"{name}.ipynb", folder / "source" / name / f"{name}.ipynb"
    student, graded = ([course.source(c) for c in notebook(p)["cells"] if c["cell_type"] == "code"] for p in paths)
    bare = [re.sub(r'\("blank.*"\)', "", text) for text in student]
    imports = re.compile(r"from samu\S+ import (check_\w+)\n(?=\1\()")
    assert bare == [re.sub(r" *# blank.*\n", "", released(imports.sub("", text))) for text in graded]
    assert len([t for t in graded if imports.match(t)]) == len([c for c in cells(name) if course.exercise(c)])


def test_functions_are_found_beside_one_another_and_in_nbgraders_folders(folder):
    together = course.functions_in(folder / "reader")
    alone = course.functions_in(folder / "source" / "05_forgetting")
    assert together.keys() == alone.keys() and {"ask", "forget"} <= alone.keys()


def pasted(folder, name):
    "A student's copy with the solutions of the reader's copy pasted over its stubs."
    student, reader = (notebook(folder / kind / f"{name}.ipynb") for kind in ("student", "reader"))
    solutions = iter(re.findall(r"<summary>Solution</summary>\n\n```python\n(.*?)\n```",
                                "\n".join(map(course.source, reader["cells"])), re.S))
    for cell in student["cells"]:
        if course.exercise(cell):
            cell["source"] = next(solutions)
    path = folder / f"pasted_{name}.ipynb"
    path.write_text(json.dumps(student), "utf-8")
    return path


def test_no_answers_are_overwritten(folder):
    with pytest.raises(UserError, match="choose another folder"):
        course.make_copies(folder)


# --- The one page, from a reader's own functions


def test_the_readers_functions_forget_somebody(exp):
    from samu.entities import questions

    parts = course.functions_in(ROOT / copy_exercises.PLACE)
    name = exp.entities[7].name
    weights = {k: v.clone() for k, v in exp.model.state_dict().items()}
    others = [e for e in exp.roles.held_out if e.name != name][:20]
    asked = [questions(group, exp.prompts) for group in ([exp.find(name)], others)]
    with torch.enable_grad():
        checks_forgetting.one_page(parts, exp, name)
    exp.applied = "one page"  # replies of these weights are not those of the original
    after = [exp.recall(a) for a in asked]
    exp.model.load_state_dict(weights)
    exp.model.requires_grad_(False)
    exp.applied = None
    assert after[0] <= 0.07 and after[1] >= 0.95


def test_a_missing_part_is_named():
    with pytest.raises(NotYet, match=r"not done yet: .*forget \(chapter 05\)"):
        checks_forgetting.one_page({}, None, "x")


def test_a_part_without_a_body_is_named(exp, folder):
    with pytest.raises(NotYet, match="has no body of yours"):
        checks_forgetting.one_page(course.functions_in(folder / "student"), exp, exp.entities[7].name)


# --- Quizzes, syllabus


CHAPTERS = {p.stem: p for p in sorted((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb"))}
PEOPLE_TIME = re.compile(r"\*\*Time:\*\* about (\d+) minutes")


def texts_of(name):
    return [course.source(c) for c in notebook(CHAPTERS[name])["cells"] if c["cell_type"] == "markdown"]


def test_quizzes_explain_every_choice():
    quizzes = course.quizzes()
    assert sorted(quizzes) == [name[:2] for name in CHAPTERS]
    for chapter, questions in quizzes.items():
        assert len(questions) == 5
        for q in questions:
            assert len(q["choices"]) == len(q["why"]) >= 3 and 0 <= q["right"] < len(q["choices"])
            assert min(map(len, q["why"])) > 15 and len(set(q["choices"])) == len(q["choices"])


def test_quizzes_cannot_be_passed_by_length_or_letter():
    "Of five right choices at most two are the longest, two the shortest, and three have one letter; in proportion."
    for chapter, questions in course.quizzes().items():
        right = [q["right"] for q in questions]
        sizes = [[len(re.sub("[`*]", "", choice)) for choice in q["choices"]] for q in questions]
        for extreme in (max, min):
            hits = sum(size[r] == extreme(size) for size, r in zip(sizes, right, strict=True))
            assert hits <= 0.4 * len(right), (chapter, extreme.__name__)
        assert max(map(right.count, right)) <= 0.6 * len(right), chapter


def quiz_text(chapter):
    "A quiz as markdown; the answers are folded, and say of every wrong choice why it is wrong."
    parts = ["## Quiz"]
    for n, q in enumerate(course.quizzes()[chapter], 1):
        letters = "abcdef"[: len(q["choices"])]
        choices = [f"- **{x}** {choice}" for x, choice in zip(letters, q["choices"], strict=True)]
        why = [
            f"- **{x}** {'Right' if i == q['right'] else 'No'}: {reason}"
            for i, (x, reason) in enumerate(zip(letters, q["why"], strict=True))
        ]
        answer = "<details><summary>Answer</summary>\n\n" + "\n".join(why) + "\n\n</details>"
        parts += [f"**{n}.** {q['ask']}", "\n".join(choices), answer]
    return "\n\n".join(parts)


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_teaches(name):
    "A prediction, a quiz, takeaways, the times, figures; long enough and not too long."
    texts = texts_of(name)
    whole = "\n\n".join(texts)
    assert quiz_text(name[:2]) in texts
    assert "## Key takeaways" in whole
    assert len(re.findall(r"\*\*Predict", whole)) >= (2 if "01" <= name[:2] <= "09" else 1)
    assert whole.count("<details>") > 5  # a prediction's answer, beside those of the quiz
    assert 300 <= len(whole.replace(quiz_text(name[:2]), "").split()) <= 3500
    outputs = [o for c in notebook(CHAPTERS[name])["cells"] for o in c.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 2
    assert "machine needs" in " ".join(whole.split())
    if name in course.masters():
        assert (quiz_text(name[:2]) in "\n".join(map(course.source, cells(name)))) == (name[:2] != "00")


@pytest.mark.parametrize("name", CHAPTERS)
def test_minutes_of_reading_are_counted(name):
    "200 words a minute, 8 lines of code a minute, a minute for each figure; give or take ten."
    texts = texts_of(name)
    words = sum(len(text.split()) for text in texts if not text.startswith("## Quiz"))
    sources = [course.source(c) for c in notebook(CHAPTERS[name])["cells"] if c["cell_type"] == "code"]
    lines = [line for s in sources for line in s.splitlines() if line.strip() and not line.startswith("#|")]
    counted = words / 200 + len(lines) / 8 + sum(bool(re.search(r"(?<![.\w])show\(", s)) for s in sources)
    assert abs(course.READING[name] - counted) <= 10, counted
    stated = PEOPLE_TIME.search(" ".join(" ".join(texts).split()))
    assert int(stated[1]) == course.READING[name]


def test_syllabus_covers_every_chapter():
    table = course.syllabus()
    assert list(table.chapter) == list(CHAPTERS)
    assert table.exercises.sum() == len(MISTAKES) and (table.hours > 0).all()
    page = (ROOT / "nbs" / "teaching" / "syllabus.md").read_text("utf-8")
    rows = [[x.strip() for x in line.split("|")[2:-1]] for line in page.splitlines() if line.startswith("| [")]
    shown = [[int(x or 0) for x in row[:4]] + [float(row[4])] for row in rows]
    assert shown == table.drop(columns="chapter").values.tolist()


def test_minutes_of_the_plans_add_up():
    "In brackets the minutes of each part, in the next cell their sum; exercises by their own minutes; clocks agree."
    page, notes = ((ROOT / "nbs" / "teaching" / f"{n}.md").read_text("utf-8") for n in ("syllabus", "instructor_notes"))
    rows = course.exercise_rows()
    own = dict(zip(rows.chapter.str[1] + "." + (rows.groupby("chapter").cumcount() + 1).astype(str), rows.minutes))
    for names, minutes in re.findall(r"((?:\d\.\d(?:–|, )?)+) \((\d+)\)", page):
        parts = [(part[:2], int(part[2]), int(part[-1])) for part in names.split(", ")]
        assert sum(own[f"{c}{n}"] for c, a, b in parts for n in range(a, b + 1)) == int(minutes), names
    def sums(cell): return sum(map(int, re.findall(r"\((\d+)\)", cell)))
    cut = [[c.strip() for c in line.split("|")[1:-1]] for line in page.splitlines()]
    days, weeks = ([c for c in cut if c[:1] and re.match(start, c[0])] for start in (r"day \d", r"\d$"))
    assert all(sums(c[1]) == int(c[2]) <= 210 and int(c[2]) - sums(c[3]) == int(c[4]) <= 180 for c in days)
    assert all(sums(c[1]) == int(c[2]) <= 120 and sums(c[3]) == int(c[4]) <= 180 for c in weeks)
    times = [tuple(map(int, t)) for t in re.findall(r"^\| (\d+)–(\d+) \|", page + notes, re.M)]
    ends = [a[1] for a, b in zip(times, [*times[1:], (0, 0)]) if a[1] != b[0]]
    assert ends == [180] + [int(c[2]) for c in days] and len(days) == 4 and len(weeks) == 7


# --- The commands


def test_commands(tmp_path):
    from samu.cli import app
    from typer.testing import CliRunner

    run = CliRunner().invoke
    shown = run(app, ["course"])
    assert shown.exit_code == 0 and "05_forgetting" in shown.output
    assert run(app, ["student", "--out", str(tmp_path / "a")]).exit_code == 0
    assert run(app, ["student", "--out", str(tmp_path / "b"), "--graded"]).exit_code == 0
    count = len(course.masters())
    assert len(list(tmp_path.glob("a/*/*.ipynb"))) == 2 * count and len(list(tmp_path.glob("b/source/*/*.ipynb"))) == count
    again = run(app, ["student", "--out", str(tmp_path / "a")])
    assert isinstance(again.exception, UserError)


# --- Drawings


def test_texts_in_drawings_do_not_overlap():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from samu.workshop import drawings

    figures = [drawings.method_figure(step) for step in (None, *drawings.STEPS)]
    figures += [drawings.places_figure(), drawings.seen_figure(), drawings.superposition_figure(), drawings.hooks_figure()]
    for fig in figures:
        renderer = FigureCanvasAgg(fig).get_renderer()
        texts = [t for ax in fig.axes for t in ax.texts if t.get_text()]
        boxes = [t.get_window_extent(renderer) for t in texts]
        page = fig.bbox
        for i, a in enumerate(boxes):
            assert page.x0 <= a.x0 and a.x1 <= page.x1, texts[i].get_text()
            clash = [texts[j].get_text() for j in range(i) if a.overlaps(boxes[j])]
            assert clash == [], (texts[i].get_text(), clash)
    with pytest.raises(UserError, match="there is no step"):
        drawings.method_figure("nothing")


def test_an_installed_package_holds_all_data():
    from configparser import ConfigParser

    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    shipped = {p for pattern in parser["DEFAULT"]["package_data"].split() for p in (ROOT / "samu").glob(pattern)}
    assert {p for p in (ROOT / "samu" / "data").rglob("*") if p.is_file()} <= shipped
