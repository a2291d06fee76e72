"""Residuals at names, SAEs and latents: chapters 02 to 04 on models and SAEs small enough to check by hand."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from samu import latents as chapter
from samu.entities import few_prompts, questions
from samu.latents import mean_latents, name_statistics, separation_scores, steer, top_texts, worst_over_kinds
from samu.residuals import name_residuals, partners, patch_recall, patched_answers
from samu.saes import pre_activations, sae_digest, sae_quality, text_residuals
from samu.workshop.batching import name_tokens
from samu.workshop.invented import make_biographies, word_tokenizer
from samu.workshop.lm import answer_edited, edit_residual, final_hidden
from samu.workshop.sae_files import JumpReLU, load_sae, read_sae, site_name
from samu.workshop.setups import Experiment, Settings
from samu.workshop.store import UserError
from samu.workshop.tables import Entity, Question
from safetensors.torch import save_file

D_IN, D_SAE = 16, 40


@pytest.fixture(scope="module")
def exp():
    "Three random blocks of width 16 over the invented world; the site is block 1."
    from transformers import LlamaConfig, LlamaForCausalLM
    world = make_biographies(0, n_people=8, n_unknown=6)
    tokenizer = word_tokenizer(world)
    torch.manual_seed(0)
    hf = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=D_IN, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=None)).eval().requires_grad_(False)
    ordinary = {"loss": ["the old bird sings."], "score": ["a red tree moves near the river."]}
    return Experiment("tiny", hf, tokenizer, 1, world.people, world.prompts, ordinary, 0, None,
                      Settings(reply_tokens=1), "0" * 16, world=world)


def sae_of(architecture, **options):
    "A random SAE of SAELens."
    import sae_lens
    config = getattr(sae_lens, f"{architecture}SAEConfig")(d_in=D_IN, d_sae=D_SAE, **options)
    torch.manual_seed(1)
    sae = getattr(sae_lens, f"{architecture}SAE")(config)
    for p in sae.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return sae.eval()


ARCHITECTURES = [("Standard", {}), ("JumpReLU", {}), ("TopK", dict(k=4, rescale_acts_by_decoder_norm=False)),
                 ("TopK", dict(k=4, rescale_acts_by_decoder_norm=True)), ("Gated", {})]


@pytest.mark.parametrize("architecture,options", ARCHITECTURES)
def test_pre_activations_of_every_architecture(architecture, options):
    sae, x, seen = sae_of(architecture, **options), torch.randn(20, D_IN), {}
    with sae.hooks(fwd_hooks=[("hook_sae_acts_pre", lambda v, hook: seen.update(z=v))]):
        a = sae.encode(x)
    z = pre_activations(sae, x)
    if options.get("rescale_acts_by_decoder_norm"):
        assert torch.allclose(z[a > 0], a[a > 0], atol=1e-5)
    else:
        assert torch.allclose(z, seen["z"], atol=1e-5)
    assert torch.allclose(pre_activations(sae, x, [3, 7]), z[:, [3, 7]], atol=1e-6)


@pytest.mark.parametrize("architecture,options", ARCHITECTURES)
def test_a_silent_latent_passes_no_gradient_but_its_pre_activation_does(architecture, options):
    sae, x = sae_of(architecture, **options), torch.randn(20, D_IN)
    row, latent = (sae.encode(x) == 0).nonzero()[0].tolist()
    x.requires_grad_()
    through_a = torch.autograd.grad(sae.encode(x)[row, latent], x)[0]
    through_z = torch.autograd.grad(pre_activations(sae, x, [latent])[row, 0], x)[0]
    assert through_a.abs().sum() == 0
    assert through_z[row].abs().sum() > 0


@pytest.mark.parametrize("architecture", ["Standard", "JumpReLU"])
@pytest.mark.parametrize("centred", [True, False])
def test_our_reader_computes_exactly_what_saelens_does(architecture, centred, tmp_path):
    from sae_lens.saes.sae import SAEMetadata
    about = SAEMetadata(hook_name="blocks.1.hook_resid_post")
    theirs = sae_of(architecture, apply_b_dec_to_input=centred, metadata=about)
    theirs.save_model(tmp_path)
    ours, x = read_sae(tmp_path), torch.randn(50, D_IN)
    assert isinstance(ours, JumpReLU)
    assert torch.equal(ours.encode(x), theirs.encode(x))
    assert torch.equal(ours.decode(ours.encode(x)), theirs.decode(theirs.encode(x)))
    assert (ours.cfg.d_in, ours.cfg.d_sae, ours.cfg.hook_name) == (D_IN, D_SAE, "blocks.1.hook_resid_post")


@pytest.mark.parametrize("architecture,options", [("TopK", dict(k=4)), ("Gated", {}),
                                                  ("JumpReLU", dict(normalize_activations="layer_norm"))])
def test_other_architectures_stay_as_saelens_made_them(architecture, options, tmp_path, exp):
    theirs = sae_of(architecture, **options)
    theirs.save_model(tmp_path)
    loaded, x = load_sae(tmp_path, exp), torch.randn(50, D_IN)
    assert type(loaded) is type(theirs)
    assert torch.allclose(loaded.decode(loaded.encode(x)), theirs.decode(theirs.encode(x)), atol=1e-5)
    assert len(sae_digest(loaded)) == 16


def scope_folder(parent, name="layer_1_width_16k_l0_small", config=None, leave_out=()):
    "A folder as Gemma Scope 2 has them, with random arrays."
    torch.manual_seed(2)
    shapes = dict(w_enc=(D_IN, D_SAE), w_dec=(D_SAE, D_IN), b_enc=(D_SAE,), b_dec=(D_IN,), threshold=(D_SAE,))
    arrays = {n: torch.rand(s) if n == "threshold" else torch.randn(s) for n, s in shapes.items()}
    folder = Path(parent) / name
    folder.mkdir()
    save_file({n: t for n, t in arrays.items() if n not in leave_out}, folder / "params.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder, arrays


def test_gemma_scope_2(tmp_path, exp):
    folder, w = scope_folder(tmp_path)
    sae, x = load_sae(folder, exp), torch.randn(50, D_IN)
    z = x @ w["w_enc"] + w["b_enc"]
    a = z * (z > w["threshold"])
    assert torch.allclose(sae.encode(x), a, atol=1e-6)
    assert torch.allclose(sae.decode(a), a @ w["w_dec"] + w["b_dec"], atol=1e-5)
    assert sae.cfg.hook_name == site_name(exp)
    named, _ = scope_folder(tmp_path, "copy", dict(hf_hook_point_in="model.layers.1.output"))
    assert torch.equal(load_sae(named, exp).encode(x), sae.encode(x))


@pytest.mark.parametrize("options,says", [
    (dict(name="layer_2_width_16k"), "trained at 'blocks.2.hook_resid_post'"),
    (dict(name="copy"), "its name is 'copy'"),
    (dict(config=dict(hf_hook_point_in="model.layers.1.self_attn.o_proj.input")), "residual stream"),
    (dict(leave_out=["threshold"]), "no array 'threshold'"),
])
def test_a_wrong_gemma_scope_2_folder_is_refused(options, says, tmp_path, exp):
    folder, _ = scope_folder(tmp_path, **options)
    with pytest.raises(UserError, match=says):
        load_sae(folder, exp)


def test_refusals_of_load_sae(tmp_path, exp):
    with pytest.raises(UserError, match="neither cfg.json"):
        load_sae(tmp_path, exp)
    (tmp_path / "cfg.json").write_text("{ half")
    with pytest.raises(UserError, match="cannot be read"):
        load_sae(tmp_path, exp)
    folder, _ = scope_folder(tmp_path)
    with pytest.raises(UserError, match="width 16, but 'tiny' has width 16000"):
        load_sae(folder, SimpleNamespace(name="tiny", d_model=16_000, device="cpu", layer=1))


def random_sae(seed=0):
    torch.manual_seed(seed)
    return JumpReLU({"W_enc": torch.randn(D_IN, D_SAE) / 4, "b_enc": torch.randn(D_SAE) / 4, "b_dec": torch.randn(D_IN),
                     "W_dec": torch.randn(D_SAE, D_IN) / 4, "threshold": torch.rand(D_SAE) / 2}, "")


def test_the_key_of_an_sae_sees_the_order_of_latents():
    "The first package named an SAE by sums of parameters: a permuted dictionary was taken for the same one."
    sae, order = random_sae(), torch.randperm(D_SAE)
    turned = {n: getattr(sae, n)[..., order] for n in ("W_enc", "b_enc", "threshold")}
    permuted = JumpReLU(turned | {"W_dec": sae.W_dec[order], "b_dec": sae.b_dec}, "")
    for n, t in sae.state_dict().items():
        assert torch.allclose(t.double().sum(), permuted.state_dict()[n].double().sum())
    assert sae_digest(sae) != sae_digest(permuted)
    assert sae_digest(sae) == sae_digest(random_sae())


def test_streaming_quality_equals_the_formula_and_keeps_only_sums(monkeypatch):
    sae, h = random_sae(), torch.randn(10_000, D_IN) * 2 + 5
    a = sae.encode(h)
    missed = (h - sae.decode(a)).pow(2).sum() / (h - h.mean(0)).pow(2).sum()
    largest, encode = [], sae.encode
    monkeypatch.setattr(sae, "encode", lambda x: largest.append(len(x)) or encode(x))
    quality = sae_quality(sae, h)
    assert max(largest) <= 4096
    assert quality["unexplained_variance"] == pytest.approx(missed.item(), rel=1e-4)
    assert quality["l0"] == pytest.approx((a > 0).float().sum(-1).mean().item(), rel=1e-5)
    assert quality["dead"] == pytest.approx(((a > 0).sum(0) == 0).float().mean().item())
    assert torch.allclose(quality["frequency"], (a > 0).float().mean(0))


def test_mean_latents_stream_and_count_each_entity_once(monkeypatch):
    sae, h, item = random_sae(), torch.randn(5000, D_IN), torch.randint(0, 7, (5000,))
    largest, encode = [], sae.encode
    monkeypatch.setattr(sae, "encode", lambda x: largest.append(len(x)) or encode(x))
    means = mean_latents(sae, h, item, 8)
    assert max(largest) <= 2048
    for i in range(7):
        assert torch.allclose(means["z"][i], pre_activations(sae, h[item == i]).mean(0), atol=1e-4)
        assert torch.allclose(means["on"][i], (encode(h[item == i]) > 0).float().mean(0), atol=1e-5)
    assert means["a"][7].abs().sum() == 0     # an entity without a token is zero, not NaN


def test_separation_scores_by_hand():
    assert separation_scores(torch.tensor([[1.0, 0], [2, 0]]), torch.zeros(3, 2)).tolist() == [1, 0]
    assert separation_scores(torch.zeros(3, 2), torch.tensor([[1.0, 0], [2, 0]])).tolist() == [-1, 0]
    by_kind = torch.tensor([[0.9, 0.8, -0.7, 0.5], [0.1, 0.7, -0.6, -0.5]])
    assert torch.allclose(worst_over_kinds(by_kind), torch.tensor([0.1, 0.7, -0.6, 0]))


def asked(exp, entities):
    "One question each, long and short ones."
    texts = [p.text for p in exp.prompts if p.split == "score"]
    out = []
    for i, e in enumerate(entities):
        text = texts[i % len(texts)]
        start = text.index("{name}")
        out.append(Question(e.name, "x", text.replace("{name}", e.name), start, start + len(e.name), ("y",)))
    return out


def whole_prompt(exp, question, layer):
    "Residuals of a whole prompt after a block, [tokens, d_model], read by a hook in a full pass."
    seen = []
    with edit_residual(exp.model, layer, lambda h: seen.append(h) or h):
        final_hidden(exp.model, torch.tensor([exp.tokenizer(question.text)["input_ids"]]))
    return seen[0][0]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_residuals_at_every_block_the_last_one_too(exp, layer):
    "After the last block TransformerLens' stop_at_layer gives logits; the first package took them for residuals."
    q = asked(exp, exp.entities)
    read, names = name_residuals(exp, q, layer=layer)
    assert names == [e.name for e in exp.entities]
    assert read.values.shape == (len(q), D_IN) and read.values.dtype == torch.float32
    for i, question in enumerate(q):
        h = whole_prompt(exp, question, layer)
        _, _, stop = name_tokens(exp.tokenizer, question)
        assert torch.allclose(read.values[read.item == i][0], h[stop - 1], atol=1e-5)
    texts = [question.text for question in q]
    h, tokens, number = text_residuals(exp, texts, layer)
    assert h.shape == (len(tokens), D_IN) and len(number) == sum(len(r) - 1 for r in exp.tokenizer(texts)["input_ids"])


def test_a_block_that_is_not_there_is_refused(exp):
    with pytest.raises(UserError, match="blocks 0 to 2"):
        name_residuals(exp, asked(exp, exp.entities), layer=3)


@pytest.fixture
def prepared(exp):
    "The tiny experiment with an SAE, centroids and latents put in by hand."
    made = replace(exp)
    made.sae = random_sae()
    z = torch.randn(2, D_SAE)
    made.centroids = SimpleNamespace(mu_unknown=z, mu_known=-z)
    made.latents = SimpleNamespace(selected=torch.arange(0, D_SAE, 2))
    return made


def test_statistics_count_entities_and_not_texts(prepared):
    entities = prepared.roles.unknown_loss[:5]
    read_in = few_prompts(prepared.prompts, prepared.settings.grading_prompts, "loss")
    made, rows = name_statistics(prepared, entities), {0: [], 1: []}
    for e in entities:
        read, _ = name_residuals(prepared, questions([e], read_in, "loss"), last_only=False)
        for row in rows:
            rows[row].append(read.values[read.from_end == row])
    for row, per_entity in rows.items():
        z = torch.stack([pre_activations(prepared.sae, h).mean(0) for h in per_entity])
        a = torch.stack([prepared.sae.encode(h).mean(0) for h in per_entity])
        expected = dict(z=z.mean(0), sd=z.std(0), a=a.mean(0), h=torch.stack([h.mean(0) for h in per_entity]).mean(0))
        for field, value in expected.items():
            assert torch.allclose(made[field][row], value, atol=1e-4), field


def test_steering_and_patching_change_only_the_tokens_of_the_name(prepared):
    exp, q = prepared, asked(prepared, prepared.entities)[2]
    ids, start, stop = name_tokens(exp.tokenizer, q)
    places = {}

    def watch(inner):
        def edit(h, positions):
            new = inner(h, positions)
            places.update(shape=h.shape, moved=(new - h).abs().sum(-1) > 0)
            return new
        return edit
    answer_edited(exp.model, exp.tokenizer, [q], watch(steer(exp)), exp.layer, 1)
    assert places["shape"] == (1, stop - start, D_IN) and places["moved"].all()
    # what comes after the site and before the name is untouched: read it with the edit in place
    after = []
    handle = exp.model.model.layers[2].register_forward_pre_hook(lambda module, inputs: after.append(inputs[0].clone()))
    answer_edited(exp.model, exp.tokenizer, [q], lambda h, positions: h, exp.layer, 1)
    answer_edited(exp.model, exp.tokenizer, [q], steer(exp), exp.layer, 1)
    handle.remove()
    changed = ((after[0] - after[1]).abs().sum(-1) > 1e-6)[0].nonzero()[:, 0].tolist()
    assert changed == list(range(start, stop))


@pytest.mark.parametrize("other, unknown", [(-0.1, [1]), (0.1, [1, 2])])
def test_the_mean_over_kinds_where_no_latent_is_of_one_sort_in_all(other, unknown, monkeypatch):
    "SmolLM2 has seven kinds and no latent that marks unknown names in each: no one could be forgotten there, by any method."
    scores = dict(author=torch.tensor([0.5, -0.3, 0.0, 0.1]), city=torch.tensor([0.4, other, -0.2, 0.2]))
    monkeypatch.setattr(chapter, "scores_by_kind", lambda exp: scores)
    monkeypatch.setattr(chapter, "text_residuals", lambda exp, texts: (torch.zeros(1), None, None))
    monkeypatch.setattr(chapter, "sae_quality", lambda sae, h: dict(frequency=torch.zeros(4)))
    found = chapter.find_latents(SimpleNamespace(sae=None, ordinary=dict(loss=[])))
    assert found.known.tolist() == [0, 3] and sorted(found.unknown.tolist()) == unknown


def test_steering_sets_the_chosen_latents_and_keeps_the_error(prepared):
    exp, h = prepared, torch.randn(4, 2, D_IN)
    chosen, sae = exp.latents.selected, exp.sae
    a = sae.encode(h)
    goal = exp.centroids.mu_unknown[[1, 0]][:, chosen]     # row 1 for the earlier token, row 0 for the last
    wanted = a.clone()
    wanted[..., chosen] = (goal * (goal > sae.threshold[chosen])).expand(4, 2, len(chosen))
    error = h - sae.decode(a)
    assert torch.allclose(steer(exp)(h, [0, 1, 2, 3]), sae.decode(wanted) + error, atol=1e-4)
    assert torch.allclose(steer(exp, strength=0.0)(h, [0, 1, 2, 3]), h)
    back = steer(exp, "known", torch.tensor([3]))(h, [0, 1, 2, 3]) - h
    assert torch.linalg.matrix_rank(back.reshape(8, D_IN)) == 1


def test_patching_itself_changes_nothing_and_the_last_block_comes_too_late(exp):
    q = asked(exp, exp.entities)
    said = answer_edited(exp.model, exp.tokenizer, q, lambda h, positions: h, exp.layer, 1)
    itself = [(question, exp.find(question.name)) for question in q]
    for layer in range(3):
        assert patched_answers(exp, itself, layer) == said
    assert patched_answers(exp, partners(exp, q, exp.world.unknown), 2) == said
    table = patch_recall(exp, q, exp.world.unknown, layers=[0, 2])
    assert table.columns.tolist() == ["layer", "n", "recall", "other", "unknown"]
    assert table.n.tolist() == [len(q)] * 2


def test_patching_puts_in_what_the_other_name_has(exp):
    "After block 0, with all tokens of the name replaced, the residual at the name is that of the other name's prompt."
    q = asked(exp, exp.entities)[:1]
    pair = partners(exp, q, [exp.world.unknown[0]])
    after = []
    handle = exp.model.model.layers[1].register_forward_pre_hook(lambda module, inputs: after.append(inputs[0].clone()))
    patched_answers(exp, pair, 0)
    handle.remove()
    other = Question(pair[0][1].name, "x", q[0].text.replace(q[0].name, pair[0][1].name), q[0].start,
                     q[0].start + len(pair[0][1].name))
    read, _ = name_residuals(exp, [other], last_only=False, layer=0)
    _, start, stop = name_tokens(exp.tokenizer, q[0])
    assert torch.allclose(after[-1][0, start:stop], read.values, atol=1e-5)


def test_a_question_that_nobody_fits_is_left_out_and_none_at_all_is_refused(exp):
    one_word = Entity(exp.world.unknown[0].name.split()[0], "person")
    with pytest.raises(UserError, match="as many tokens"):
        partners(exp, asked(exp, exp.entities), [one_word])


def test_top_texts_name_the_token(exp):
    made = replace(exp)
    made.sae = random_sae()
    texts = ["the old bird sings.", "a red tree moves near the river."]
    h, tokens, number = text_residuals(made, texts)
    latent = int(made.sae.encode(h).max(0).values.argmax())
    table = top_texts(made, latent, texts, n=1)
    best = made.sae.encode(h)[:, latent].argmax()
    assert table.text[0] == texts[number[best]]
    assert table.token[0] == made.tokenizer.decode([int(tokens[best])])
