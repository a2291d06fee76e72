"Public dictionaries in the layouts in which they are published, written here; every corruption is one line."
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from samu.workshop.sae_files import read_sae
from samu.workshop.store import UserError

D_IN, D_SAE = 16, 40
SHAPES = dict(W_enc=(D_IN, D_SAE), W_dec=(D_SAE, D_IN), b_enc=(D_SAE,), b_dec=(D_IN,), threshold=(D_SAE,))


def arrays():
    torch.manual_seed(0)
    return {n: torch.rand(s) if n == "threshold" else torch.randn(s) for n, s in SHAPES.items()}


def gemma_1(place):
    folder = place / "gemma-scope-2b-pt-res" / "layer_9" / "width_16k" / "average_l0_73"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{n: t.numpy() for n, t in arrays().items()})
    return folder


def gemma_2(place):
    folder = place / "layer_9_width_16k_l0_medium"
    folder.mkdir()
    save_file({n.replace("W_", "w_"): t for n, t in arrays().items()}, folder / "params.safetensors")
    (folder / "config.json").write_text(json.dumps(dict(hf_hook_point_in="model.layers.9.output")))
    return folder


def llama(place):
    folder = place / "Llama3_1-8B-Base-L9R-8x"
    (folder / "checkpoints").mkdir(parents=True)
    w = arrays()
    save_file({"encoder.weight": w["W_enc"].T.contiguous(), "decoder.weight": w["W_dec"].T.contiguous(),
               "encoder.bias": w["b_enc"], "decoder.bias": w["b_dec"]}, folder / "checkpoints" / "final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps(dict(
        hook_point_in="blocks.9.hook_resid_post", d_model=D_IN, d_sae=D_SAE, act_fn="jumprelu",
        jump_relu_threshold=0.5, dataset_average_activation_norm={"in": 8.0, "out": 8.0})))
    return folder


LAYOUTS = dict(gemma_1=gemma_1, gemma_2=gemma_2, llama=llama)
WEIGHTS = dict(gemma_1="params.npz", gemma_2="params.safetensors", llama="checkpoints/final.safetensors")


@pytest.mark.parametrize("layout", ["gemma_1", "gemma_2"])
def test_gemma_scope_computes_what_its_paper_says(layout, tmp_path):
    sae, w, x = read_sae(LAYOUTS[layout](tmp_path)), arrays(), torch.randn(50, D_IN)
    z = x @ w["W_enc"] + w["b_enc"]
    a = z * (z > w["threshold"]) * (z > 0)
    assert torch.allclose(sae.encode(x), a, atol=1e-6)
    assert torch.allclose(sae.decode(a), a @ w["W_dec"] + w["b_dec"], atol=1e-5)
    assert sae.cfg.hook_name == "blocks.9.hook_resid_post"


def test_llama_scope_computes_what_saelens_does(tmp_path):
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
    w, scale, x = arrays(), D_IN**0.5 / 8.0, torch.randn(50, D_IN)
    theirs = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE, apply_b_dec_to_input=False))
    state = {k: v for k, v in w.items() if k != "threshold"} | dict(threshold=torch.full((D_SAE,), 0.5 * scale))
    theirs.load_state_dict(state)
    theirs.fold_activation_norm_scaling_factor(scale)
    ours = read_sae(llama(tmp_path))
    a = theirs.encode(x)
    assert torch.allclose(ours.encode(x), a, atol=1e-6) and (a > 0).any()
    assert torch.allclose(ours.decode(a), theirs.decode(a), atol=1e-5)
    assert ours.cfg.hook_name == "blocks.9.hook_resid_post"


def change(folder, layout, how):
    "Damage a file of arrays."
    file = folder / WEIGHTS[layout]
    name = {"llama": "decoder.bias"}.get(layout, "b_dec")
    if how == "cut":
        file.write_bytes(file.read_bytes()[:200])
        return
    if how == "gone":
        file.unlink()
        return
    found = load_file(file) if file.suffix == ".safetensors" else {
        k: torch.tensor(v) for k, v in np.load(file).items()}
    if how == "lacks":
        del found[name]
    elif how == "shape":
        found[name] = found[name][:-1].clone()
    elif how == "nan":
        found[name][0] = float("nan")
    if file.suffix == ".safetensors":
        save_file(found, file)
    else:
        np.savez(file, **{k: v.numpy() for k, v in found.items()})


@pytest.mark.parametrize("how, says", [("cut", "cannot be read"), ("gone", "no checkpoints/final|neither"),
                                       ("lacks", "no array 'b_dec'"), ("shape", "has shape"),
                                       ("nan", "no number")])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_arrays_are_one_line(layout, how, says, tmp_path):
    folder = LAYOUTS[layout](tmp_path)
    change(folder, layout, how)
    with pytest.raises(UserError, match=says) as e:
        read_sae(folder)
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize("changes, says", [
    (dict(hook_point_in="blocks.9.hook_mlp_out"), "residual stream"), (dict(act_fn="topk"), "JumpReLU"),
    (dict(dataset_average_activation_norm=None), "wrong one"), (dict(d_model="many"), "wrong one"),
    (dict(dataset_average_activation_norm={"in": 0}), "wrong one")])
def test_damaged_hyperparameters_are_one_line(changes, says, tmp_path):
    folder = llama(tmp_path)
    config = json.loads((folder / "hyperparams.json").read_text()) | changes
    (folder / "hyperparams.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=says) as e:
        read_sae(folder)
    assert len(str(e.value).splitlines()) == 1
    (folder / "hyperparams.json").write_text("{ half")
    with pytest.raises(UserError, match="cannot be read"):
        read_sae(folder)


def test_a_gemma_scope_path_must_say_where(tmp_path):
    folder = gemma_1(tmp_path)
    folder.rename(tmp_path / "copy")
    with pytest.raises(UserError, match="which block"):
        read_sae(tmp_path / "copy")
