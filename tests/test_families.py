"""Every supported family, as a tiny model of random weights: samu computes what transformers computes."""
import json
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from samu.workshop import lm
from samu.workshop.batching import answer_spans, batches
from samu.workshop.lm import (FAMILIES, LOOK, anatomy, answer_logprobs, answer_loss, check_config, edit_residual,
                              final_hidden, float32_copies, generate, load_lm, logits, next_tokens, optimizer_step,
                              residuals, residuals_by_layer, save_lm, starting_at, trained_weights)
from samu.workshop.runtime import threads_for
from samu.workshop.store import UserError

PAIRS = [("The town of Anna Baker is", "Paris"), ("Nils Thorn works for the", "first team of that city"),
         ("He", "lives")]
PROMPTS = ["The town of Anna Baker is", "He", "Karla Lund knows",
           "Question: What is the first job of Nils Thorn in that city? Answer:"]


def close(a, b, tolerance=1e-5):
    "Equal within 1e-5, absolute for small numbers and relative for large ones."
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    "A second thread would only wait for models as small as these."
    with threads_for(tiny.model()):
        yield


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def hf(family):
    return tiny.model(family)


@pytest.fixture(scope="module")
def tok():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def ids(tok):
    return torch.tensor([tok(PROMPTS[3])["input_ids"]])


@pytest.fixture(scope="module")
def hidden_states(hf, ids):
    "What transformers reports: the embedding, then the residual after each block, the last one normed."
    with torch.no_grad():
        return hf(ids, output_hidden_states=True).hidden_states


def test_every_family_is_tried():
    assert set(tiny.FAMILIES) == set(FAMILIES)


def test_residuals(hf, ids, hidden_states):
    a = anatomy(hf)
    assert len(hidden_states) == a.n_layers + 1 and a.d_model == hidden_states[0].shape[-1]
    for layer in range(a.n_layers - 1):
        close(residuals(hf, ids, layer), hidden_states[layer + 1])


def test_the_last_block_gives_the_residual_before_the_last_norm(hf, ids, hidden_states):
    a = anatomy(hf)
    last = residuals(hf, ids, a.n_layers - 1)
    assert last.shape == hidden_states[-1].shape
    close(a.norm(last), hidden_states[-1])
    assert not torch.allclose(last, hidden_states[-1], atol=1e-3)


def test_gradients_pass_and_no_block_above_runs(hf, ids):
    a, ran = anatomy(hf), []
    handles = [b.register_forward_hook(lambda *x, i=i: ran.append(i)) for i, b in enumerate(a.blocks)]
    weight = next(iter(trained_weights(hf, (1, 1), "down", 1).values())).requires_grad_(True)
    try:
        residuals(hf, ids, 1).square().sum().backward()
        with torch.no_grad():
            assert not residuals(hf, ids, 1).requires_grad
        assert weight.grad.abs().max() > 0 and set(ran) == {0, 1}
    finally:
        weight.requires_grad_(False)
        weight.grad = None
        for h in handles:
            h.remove()


def test_logits(hf, ids):
    with torch.no_grad():
        ours, theirs = logits(hf, final_hidden(hf, ids)), hf(ids).logits
    close(ours, theirs)
    if hf.config.model_type == "gemma2":
        assert theirs.abs().max() <= 2 and anatomy(hf).head(final_hidden(hf, ids)).abs().max() > 2


def test_padding_on_either_side_changes_no_residual(hf, ids):
    wide, n = torch.full((2, ids.shape[1] + 3), 0), ids.shape[1]
    wide[0, :n], wide[1, 3:] = ids[0], ids[0]
    mask = torch.ones_like(wide)
    mask[0, n:], mask[1, :3] = 0, 0
    for layer in (1, 3):
        alone = residuals(hf, ids, layer)[0]
        close(residuals(hf, wide[:1], layer)[0, :n], alone)
        close(residuals(hf, wide[1:], layer, mask[1:])[0, 3:], alone)
    close(final_hidden(hf, wide[1:], mask[1:])[0, 3:], final_hidden(hf, ids)[0])


def test_a_pass_may_start_halfway(hf, ids):
    a, names = anatomy(hf), [n for n, _ in hf.named_parameters()]
    full = final_hidden(hf, ids)
    for layer in range(1, a.n_layers):
        h, there = residuals(hf, ids, layer - 1), residuals(hf, ids, layer)
        with starting_at(hf, layer, h):
            close(final_hidden(hf, ids), full)
            close(logits(hf, final_hidden(hf, ids)), hf(ids).logits)
            close(residuals(hf, ids, layer), there)
    with starting_at(hf, 0, a.embed(ids).detach() * 0):
        assert not torch.allclose(final_hidden(hf, ids), full)
    close(final_hidden(hf, ids), full, 0)
    assert [n for n, _ in hf.named_parameters()] == names


def test_an_edit_reaches_what_follows(hf, ids):
    shift = torch.randn(anatomy(hf).d_model)
    before = residuals_by_layer(hf, batches(tiny.tokenizer(), answer_spans(PAIRS)), range(4))
    with edit_residual(hf, 1, lambda h: h + shift):
        after = residuals_by_layer(hf, batches(tiny.tokenizer(), answer_spans(PAIRS)), range(4))
    close(after[0], before[0])
    close(after[1], before[1] + shift)
    assert not torch.allclose(after[2], before[2], atol=1e-3)


def naive_logprobs(hf, tok, prompt, answer):
    "Log-probability of an answer, one text at a time, with transformers' own logits."
    start, ids = len(tok(prompt)["input_ids"]), tok(f"{prompt} {answer}")["input_ids"]
    with torch.no_grad():
        log_p = hf(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return sum(log_p[i - 1, ids[i]] for i in range(start, len(ids))), len(ids) - start


def test_answers_are_scored_as_one_by_one(hf, tok):
    made = batches(tok, answer_spans(PAIRS))
    with torch.no_grad():
        log_p, tokens = answer_logprobs(hf, made, len(PAIRS))
    naive, counts = zip(*(naive_logprobs(hf, tok, p, a) for p, a in PAIRS), strict=True)
    close(log_p, torch.stack(naive))
    assert tokens.tolist() == list(counts)
    close(answer_loss(hf, made), -torch.stack(naive).sum() / sum(counts))


def test_what_texts_begin_with_is_read_once(hf, tok, monkeypatch):
    "As from a chat template: the losses and gradients are those of whole texts."
    pairs = [(f"{PROMPTS[0]} {p}", a) for p, a in PAIRS]
    [batch] = batches(tok, answer_spans(pairs))
    body, own = anatomy(hf).body, list(trained_weights(hf, "all", "all", 1).values())
    assert batch.shared >= len(tok(PROMPTS[0])["input_ids"]) - 1

    def loss_and_gradients():
        read = []
        handle = body.register_forward_pre_hook(
            lambda m, a, k: read.append(tuple(k["input_ids"].shape)), with_kwargs=True)
        hf.requires_grad_(True)
        with torch.enable_grad():
            loss = answer_loss(hf, [batch])
            found = torch.autograd.grad(loss, own)
        handle.remove()
        hf.requires_grad_(False)
        return read, loss.detach(), found
    whole = loss_and_gradients()
    assert whole[0] == [(len(pairs), batch.ids.shape[1] - 1)]
    monkeypatch.setattr(lm, "SMALL", 0)
    monkeypatch.setattr(lm, "SPARED", 1)
    read, loss, found = loss_and_gradients()
    assert read == [(1, batch.shared), (len(pairs), batch.ids.shape[1] - 1 - batch.shared)]
    close(loss, whole[1])
    for ours, theirs in zip(found, whole[2], strict=True):
        close(ours, theirs)


def test_generate_equals_hf_generate(hf, tok):
    greedy = dict(max_new_tokens=8, do_sample=False)
    alone = [torch.tensor([tok(p)["input_ids"]]) for p in PROMPTS]
    theirs = [tok.decode(hf.generate(x, **greedy)[0, x.shape[1]:], skip_special_tokens=True) for x in alone]
    assert generate(hf, tok, PROMPTS, 8) == theirs
    assert [generate(hf, tok, [p], 8)[0] for p in PROMPTS] == theirs
    padded = tok(PROMPTS, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    batch = hf.generate(**padded, **greedy)[:, padded["input_ids"].shape[1]:]
    assert generate(hf, tok, PROMPTS, 8) == tok.batch_decode(batch, skip_special_tokens=True)


@pytest.mark.parametrize("zero", [False, True])
def test_replies_that_have_ended_are_not_continued(hf, tok, monkeypatch, zero):
    rows = [tok(p)["input_ids"] for p in PROMPTS]
    alone = [next_tokens(hf, torch.tensor([r]), torch.ones(1, len(r)), 20, nullcontext())[0].tolist() for r in rows]
    end = next(t for t in alone[0][:LOOK] if any(t not in other for other in alone))
    monkeypatch.setattr(hf.generation_config, "eos_token_id", [0] if zero else [end, 0])
    assert all(0 not in said for said in alone)  # of a model whose last token has this number
    end = 0 if zero else end
    seen, body = [], anatomy(hf).body
    handle = body.register_forward_pre_hook(lambda m, a, k: seen.append(len(k["input_ids"])), with_kwargs=True)
    replies = generate(hf, tok, PROMPTS, 20)
    handle.remove()
    cut = [said[:said.index(end)] if end in said else said for said in alone]
    assert replies == tok.batch_decode(cut, skip_special_tokens=True)
    assert seen == [sum(end not in said[:step // LOOK * LOOK] for said in alone) for step in range(len(seen))]
    assert len(PROMPTS) == seen[0] and (seen[-1] < seen[0] or zero)


def one_step(hf, tok):
    "One training step on the down-projections of blocks 0 and 1."
    params = trained_weights(hf, "site", "down", 1)
    own = [p.requires_grad_(True) for p in params.values()]
    copies = float32_copies(own)
    answer_loss(hf, batches(tok, answer_spans(PAIRS))).backward()
    optimizer_step(torch.optim.AdamW(copies, lr=1e-2), copies, own)
    hf.requires_grad_(False)
    return params


def test_one_step_changes_the_down_projections_only_and_survives_saving(family, tok, tmp_path):
    hf = tiny.model(family, fresh=True)
    folder = save_lm(tiny.model(family), tok, tmp_path / "before", {})
    before = {k: p.clone() for k, p in hf.named_parameters()}
    params = one_step(hf, tok)
    changed = {k for k, p in hf.named_parameters() if not torch.equal(p, before[k])}
    assert changed == set(params) and {k.split(".mlp.")[0][-1] for k in changed} == {"0", "1"}
    again, tok_again = load_lm(folder, "cpu", torch.float32)
    one_step(again, tok_again)
    theirs = dict(again.named_parameters())
    for k, p in hf.named_parameters():
        close(theirs.pop(k), p)
    assert not theirs
    saved, _ = load_lm(save_lm(again, tok_again, tmp_path / "after", {}, source=folder), "cpu", torch.float32)
    row = torch.tensor([tok(PROMPTS[0])["input_ids"]])
    close(saved(row).logits, hf(row).logits)
    tied = saved.get_input_embeddings().weight is saved.get_output_embeddings().weight
    assert tied == (family in tiny.TIED)


def test_bfloat16(family, tok, tmp_path):
    hf, _ = load_lm(save_lm(tiny.model(family), tok, tmp_path / "source", {}), "cpu", torch.bfloat16)
    row = torch.tensor([tok(PROMPTS[0])["input_ids"]])
    with torch.no_grad():
        assert torch.equal(logits(hf, final_hidden(hf, row)), hf(row).logits)
    assert len(generate(hf, tok, PROMPTS, 3)) == len(PROMPTS)
    params = one_step(hf, tok)
    assert all(p.dtype == torch.bfloat16 for p in params.values())
    saved, _ = load_lm(save_lm(hf, tok, tmp_path / "model", {}), "cpu", torch.bfloat16)
    assert saved.dtype == torch.bfloat16 and torch.equal(saved(row).logits, hf(row).logits)
    tensors = load_file(tmp_path / "model" / "model.safetensors").values()
    assert all(t.dtype == torch.bfloat16 for t in tensors)


@pytest.mark.parametrize("layers", [1, 2])
def test_too_few_blocks_are_refused_before_weights_are_read(family, layers, tmp_path):
    tiny.config(family, 100, layers=layers).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="blocks has no room for a site") as e:
        load_lm(tmp_path)
    assert "\n" not in str(e.value)


def test_other_families_are_refused_before_weights_are_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(dict(model_type="opt", num_hidden_layers=6)))
    with pytest.raises(UserError, match="'opt' are not supported; use one of llama"):
        load_lm(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no config.json"):
        load_lm(tmp_path / "empty")


def test_quantised_and_two_way_models_are_refused():
    quantised = tiny.config("llama", 100)
    quantised.quantization_config = dict(quant_method="gguf")
    two_way = tiny.config("gemma3_text", 100)
    two_way.use_bidirectional_attention = True
    for config, says in ((quantised, "cannot be trained"), (two_way, "both directions")):
        with pytest.raises(UserError, match=says):
            check_config(config)


def test_weights_that_do_not_fit_are_refused(family, tok, tmp_path):
    folder, hf, _ = tiny.save(tmp_path / "model", family)
    file = folder / "model.safetensors"
    whole = load_file(file)
    down = next(k for k in whole if anatomy(hf).down_name in k and k.endswith("weight"))
    head = [k for k in whole if k in ("lm_head.weight", "embed_out.weight")]
    wrong = {"is missing": {k: v for k, v in whole.items() if k != down},
             "has another shape": whole | {down: whole[down][:, :-1].contiguous()},
             "belongs to no part|is missing": {f"base_model.model.{k}": v for k, v in whole.items()},
             "belongs to no part": whole | {"extra.weight": whole[down].clone()}}
    if head:
        wrong["is missing|missing"] = {k: v for k, v in whole.items() if k not in head}
    for says, tensors in wrong.items():
        save_file(tensors, file, {"format": "pt"})
        with pytest.raises(UserError, match=says) as e:
            load_lm(folder, "cpu", torch.float32)
        assert "\n" not in str(e.value)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be read as a model"):
        load_lm(folder, "cpu", torch.float32)
