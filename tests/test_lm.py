"""Batching and language models: what counts is found, nothing is cut in silence, nobody's files are lost."""
import json
import os
import warnings

import pytest
import torch
from safetensors.torch import load_file

import tiny
from samu.workshop import lm
from samu.workshop.batching import (Span, answer_spans, batches, by_length, encode, name_spans, name_tokens,
                                    pad_id, shared_beginnings, text_spans, width)
from samu.workshop.runtime import threads_for
from samu.workshop.store import UserError
from samu.workshop.tables import Question

NAMES = ["Anna Baker", "Nils Thorn", "Żak Łukasz"]
PAIRS = [("The town of Anna Baker is", "Paris"), ("Nils Thorn works for the", "first team of that city"),
         ("He", "lives")]


def question(name, before="The town of ", after=" is"):
    return Question(name, "town", before + name + after, len(before), len(before) + len(name), ("Paris",))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    "A second thread would only wait for models as small as these."
    with threads_for(tiny.model()):
        yield


@pytest.fixture(scope="module")
def hf():
    return tiny.model("llama")


@pytest.fixture(scope="module")
def gemma():
    return tiny.model("gemma2")


# ---- what counts is found ----

@pytest.mark.parametrize("bos, eos", [(True, False), (True, True), (False, False), (False, True)])
def test_names_and_answers_are_found_whatever_the_tokenizer_adds(bos, eos):
    tok = tiny.tokenizer(bos, eos)
    asked = [question(n) for n in NAMES] + [question("Anna Baker", "", " lives in the town of")]
    spans, names = name_spans(asked)
    assert names == NAMES and [s.item for s in spans] == [0, 1, 2, 0]
    made = batches(tok, spans, cut=True)
    assert sum(map(len, made)) == 4 and not any((b.ids == tok.eos_token_id).any() for b in made)
    for b in made:
        for row in range(len(b)):
            q = asked[b.text_index[row]]
            places = b.position[b.batch_index == row]
            said = q.name.split()[1:] if q.start == 0 and not bos else [q.name]  # not a text's first token
            assert tok.decode(b.ids[row, places]).strip() == " ".join(said)
            assert places[-1] == b.mask[row].sum() - 1, "the text is cut after the name"
            assert b.from_end[b.batch_index == row].tolist() == list(range(len(places)))[::-1]
            assert width(tok, q) == len(places) + (said != [q.name])
    for b in batches(tok, answer_spans(PAIRS)):
        for row in range(len(b)):
            said = tok.decode(b.ids[row, b.position[b.batch_index == row]])
            assert said == " " + PAIRS[b.text_index[row]][1], "no token of the prompt, and no end of text"


def test_an_appended_end_changes_no_answer_and_no_probability(hf):
    plain, ends = tiny.tokenizer(), tiny.tokenizer(True, True)
    prompts = [p for p, _ in PAIRS]
    assert ends(prompts[0])["input_ids"][-1] == ends.eos_token_id, "the trap is set"
    assert encode(ends, prompts) == encode(plain, prompts)
    assert lm.generate(hf, ends, prompts, 6) == lm.generate(hf, plain, prompts, 6)
    for tok in (plain, ends):
        log_p, tokens = lm.answer_logprobs(hf, batches(tok, answer_spans(PAIRS)), 3)
        assert torch.equal(log_p, lm.answer_logprobs(hf, batches(plain, answer_spans(PAIRS)), 3)[0])
    assert lm.perplexity(hf, ends, prompts) == lm.perplexity(hf, plain, prompts)


def test_an_end_that_is_typed_out_stays():
    tok = tiny.tokenizer(True, True)
    [(ids, _)] = encode(tok, ["He lives</s>"])
    assert ids[-1] == tok.eos_token_id and encode(tok, [""])[0][0] == [tok.bos_token_id]


def merging_tokenizer():
    "One whose tokens run across words: a prompt's tokens are not the first ones of prompt and answer."
    from tokenizers import Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast
    letters = sorted(set("The town is Paris."))
    merges = [("i", "s"), (" ", "P"), ("is", " P")]
    words = ["<s>", *letters, "is", " P", "is P"]
    made = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, merges))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", pad_token="<s>")


def test_a_prompts_tokens_need_not_be_the_first_tokens_of_prompt_and_answer():
    tok = merging_tokenizer()
    prompt, answer = "The town is", "Paris"
    alone, whole = tok(prompt)["input_ids"], tok(f"{prompt} {answer}")["input_ids"]
    assert whole[:len(alone)] != alone, "the trap is set"
    [b] = batches(tok, answer_spans([(prompt, answer)]))
    said = tok.convert_ids_to_tokens(b.pick(b.ids))
    assert said == ["is P", "a", "r", "is"], "every token with a character of the answer counts"
    hf = tiny.model("llama", vocabulary=len(tok))
    log_p, tokens = lm.answer_logprobs(hf, [b], 1)
    of_token = hf(b.ids).logits[0].log_softmax(-1)
    expected = sum(of_token[p - 1, whole[p]] for p in range(len(whole) - 4, len(whole)))
    assert tokens == 4 and torch.allclose(log_p[0], expected, atol=1e-5)


def test_all_answers_tokens_are_ranked_not_the_first_only(hf):
    [b] = batches(tiny.tokenizer(), answer_spans(PAIRS[1:2]))
    log_p = lm.token_logprobs(hf, b)
    assert log_p.shape == (len(b.position), len(tiny.tokenizer())) and len(b.position) > 1
    total, _ = lm.answer_logprobs(hf, [b], 1)
    assert torch.allclose(log_p.gather(1, b.pick(b.ids)[:, None]).sum(), total[0], atol=1e-5)
    assert torch.allclose(log_p.exp().sum(-1), torch.ones(len(log_p)), atol=1e-4)


# ---- nothing is cut in silence ----

def test_an_answer_beyond_the_cut_is_refused_and_never_certain(hf):
    tok = tiny.tokenizer()
    long = ("He lives there and works for the team. " * 12 + "The town is", "Paris")
    with pytest.raises(UserError, match="would be cut.*at most 96 are read"):
        batches(tok, answer_spans([PAIRS[0], long]), max_tokens=96)
    with pytest.raises(UserError, match="would be cut"):
        batches(tok, answer_spans([long]), max_tokens=96, truncate=True)
    log_p, _ = lm.answer_logprobs(hf, batches(tok, answer_spans([PAIRS[0], long])), 2)
    assert (log_p < 0).all()


def test_a_name_beyond_the_cut_is_refused():
    tok = tiny.tokenizer()
    late = question("Anna Baker", "He lives there and works for the team. " * 12)
    with pytest.raises(UserError, match="would be cut"):
        batches(tok, name_spans([question("Anna Baker"), late])[0], max_tokens=96)


def test_only_whole_texts_are_shortened_and_only_when_asked():
    tok, long = tiny.tokenizer(), "He lives there and works for the team. " * 12
    with pytest.raises(UserError, match="would be cut"):
        batches(tok, text_spans([long]), max_tokens=20)
    [b] = batches(tok, text_spans([long, "He"]), max_tokens=20, truncate=True)
    assert b.ids.shape == (2, 20) and b.item.bincount().tolist() == [19, len(tok("He")["input_ids"]) - 1]
    assert (b.position > 0).all(), "nothing predicts the first token"


@pytest.mark.parametrize("pairs", [[("", "Paris")], [(" ", "Paris")], [("The town is", "")]])
def test_empty_prompts_and_answers_are_refused(pairs):
    with pytest.raises(UserError, match="may be empty"):
        answer_spans(pairs)


def test_a_span_without_a_token_is_refused():
    with pytest.raises(UserError, match="gives no token to ''"):
        batches(tiny.tokenizer(), [Span("The town", 4, 4, 0)])
    with pytest.raises(UserError, match="gives no token"):
        name_tokens(tiny.tokenizer(), Question("", "town", "The town", 0, 0))


def test_batches_are_sorted_filled_and_deduplicated():
    tok = tiny.tokenizer()
    texts = ["He lives " * n for n in (9, 1, 5, 3, 7, 1)]
    made = batches(tok, text_spans(texts), batch_tokens=30)
    assert all(b.ids.numel() <= 30 or len(b) == 1 for b in made) and sum(map(len, made)) == 6
    lengths = [int(n) for b in made for n in b.mask.sum(-1)]
    assert lengths == sorted(lengths) and sorted(int(i) for b in made for i in b.text_index) == list(range(6))
    assert by_length([], 10) == [] and by_length([50, 2, 2], 4) == [[1, 2], [0]]
    asked = [question("Anna Baker"), question("Anna Baker", after=" was"), question("Nils Thorn")]
    spans, _ = name_spans(asked)
    [b] = batches(tok, spans, cut=True, last_only=True, unique=True)
    assert len(b) == 2 and b.item.sort()[0].tolist() == [0, 1] and b.from_end.tolist() == [0, 0]
    assert b.pick(b.ids[..., None]).shape == (2, 1) and b.to("cpu").frozen is None


def test_padding_token_zero_is_a_token():
    tok = tiny.tokenizer()
    assert tok.pad_token_id == 0 and pad_id(tok) == 0


# ---- the model ----

def test_bounded_logits_reach_every_score(gemma):
    tok, texts = tiny.tokenizer(), [f"{p} {a}" for p, a in PAIRS]
    total, count = 0.0, 0
    for t in texts:
        ids = torch.tensor([tok(t)["input_ids"]])
        total += gemma(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    theirs = torch.tensor(total / count).exp().item()
    assert lm.perplexity(gemma, tok, texts) == pytest.approx(theirs, rel=1e-4)
    [b] = batches(tok, text_spans(texts[:1]))
    unbounded = lm.anatomy(gemma).head(lm.final_hidden(gemma, b.ids)).log_softmax(-1)
    assert not torch.allclose(lm.token_logprobs(gemma, b), unbounded[0, :-1], atol=0.1), "the bound matters"


def test_perplexity_needs_two_tokens(hf):
    with pytest.raises(UserError, match="two tokens"):
        lm.perplexity(hf, tiny.tokenizer(False), ["H"])


def test_layers_that_do_not_exist_are_refused_and_no_hook_is_left_behind(hf):
    ids, blocks = torch.tensor([[1, 5, 6]]), lm.anatomy(hf).blocks
    before = [len(b._forward_hooks) for b in blocks]
    lm.residuals(hf, ids, 2)
    for layer in (-1, 4):
        with pytest.raises(UserError, match="blocks 0 to 3"):
            lm.residuals(hf, ids, layer)
    assert [len(b._forward_hooks) for b in blocks] == before


def test_the_site_may_be_the_last_block(hf):
    made = batches(tiny.tokenizer(), name_spans([question(n) for n in NAMES])[0], cut=True)
    by_layer = lm.residuals_by_layer(hf, made, [1, 3])
    assert by_layer[3].shape == by_layer[1].shape == (sum(len(b.position) for b in made), 32)
    assert torch.equal(by_layer[3], torch.cat([lm.residuals_at(hf, b, 3) for b in made]))


def test_replies_end_where_the_model_or_the_tokenizer_ends_a_text(hf):
    tok, prompts = tiny.tokenizer(), [p for p, _ in PAIRS]
    prompt = tok(prompts[:1], return_tensors="pt", return_token_type_ids=False)
    said = hf.generate(**prompt, max_new_tokens=6, do_sample=False)[0, prompt["input_ids"].shape[1]:].tolist()
    ours = tiny.model("llama", fresh=True)
    ours.generation_config.eos_token_id = [said[2]]
    assert lm.generate(hf, tok, prompts[:1], 6) == [tok.decode(said)]
    assert lm.generate(ours, tok, prompts[:1], 6) == [tok.decode(said[:said.index(said[2])])]
    assert lm.generate(hf, tok, [], 6) == []


def test_a_text_with_no_room_for_its_reply_is_refused():
    "GPT-2 has a weight for each place; others turn theirs, and have no last one."
    tok, gpt2 = tiny.tokenizer(), tiny.model("gpt2")
    n = len(encode(tok, ["He lives"])[0][0])
    assert lm.generate(gpt2, tok, ["He lives"], 512 - n)
    with pytest.raises(UserError, match=f"{n} tokens with a reply of {513 - n} is too long: 512 are read"):
        lm.generate(gpt2, tok, ["He lives"], 513 - n)


def test_edits_reach_the_names_and_nothing_else(hf):
    tok = tiny.tokenizer()
    asked = [question(n, b) for n in NAMES for b in ("The town of ", "He works for the town of ")]
    seen, plain = [], lm.generate(hf, tok, [q.text for q in asked], 4)

    def look(h, numbers):
        seen.extend(zip(numbers, h, strict=True))
        return h
    assert lm.answer_edited(hf, tok, asked, look, 1, 4) == plain
    assert sorted(i for i, _ in seen) == list(range(len(asked))), "the prompts are edited, and no later token"
    for i, h in seen:
        ids, start, stop = name_tokens(tok, asked[i])
        own = lm.residuals(hf, torch.tensor([ids]), 1)[0, start:stop]
        assert torch.allclose(h, own, atol=1e-5)
    assert lm.answer_edited(hf, tok, asked, lambda h, numbers: h + 10 * torch.ones(32), 1, 4) != plain


def test_a_folder_with_adapters_may_be_written_again(hf, tmp_path):
    for content in (b"1", b"2"):
        lm.save_lm(hf, tiny.tokenizer(), tmp_path / "model", {"adapter/a.json": content})
    assert (tmp_path / "model" / "adapter" / "a.json").read_bytes() == b"2"
    (tmp_path / "model" / "adapter" / "mine.txt").touch()
    with pytest.raises(UserError, match="'adapter/mine.txt', which samu did not write"):
        lm.save_lm(hf, tiny.tokenizer(), tmp_path / "model", {})


def test_weights_come_back_whatever_happens():
    hf = tiny.model("llama", fresh=True)
    before = {k: p.clone() for k, p in hf.named_parameters()}
    versions = [p._version for p in hf.parameters()]
    with pytest.raises(KeyboardInterrupt), lm.weights_kept(hf):
        for p in hf.parameters():
            p.requires_grad_(True)
            p.data.add_(1)
        raise KeyboardInterrupt
    assert all(torch.equal(p, before[k]) and not p.requires_grad for k, p in hf.named_parameters())
    stale = [p._version > v for p, v in zip(hf.parameters(), versions, strict=True)]
    assert all(stale), "whoever holds a rounded copy of a weight can tell that it has changed"


def test_trained_weights_are_named_as_in_the_model(hf):
    names = list(lm.trained_weights(hf, (1, 2), "mlp", 1))
    assert names == [f"model.layers.{i}.mlp.{m}_proj.weight" for i in (1, 2) for m in ("gate", "up", "down")]
    assert len(lm.trained_weights(hf, "all", "all", 1)) == 4 * 9
    with pytest.raises(UserError, match="weights are mlp, down or all, and blocks are .* not 'mlp' and '1-2'"):
        lm.trained_weights(hf, "1-2", "mlp", 1)
    assert len(lm.trained_weights(hf, "site", "down", 1)) == 2
    wrong = [((0, 4), "mlp"), ((2, 1), "mlp"), ("some", "mlp"), ("site", "attention"), ((-1, 1), "mlp"),
             (1, "mlp"), ((0,), "mlp"), ((0, 1.5), "mlp"), (("0", "1"), "mlp"), ("site", ["mlp"])]
    for blocks, weights in wrong:
        with pytest.raises(UserError, match="weights are mlp|blocks 0 to 3"):
            lm.trained_weights(hf, blocks, weights, 1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_adapters_merge_into_plain_weights(family):
    hf, tok = tiny.model(family, fresh=True), tiny.tokenizer()
    names, state = [k for k, _ in hf.named_parameters()], torch.get_rng_state()
    trained = lm.trained_weights(hf, "site", "mlp", 1)
    own = lm.add_lora(hf, trained, 2, seed=3)
    assert torch.equal(torch.get_rng_state(), state), "torch's random state is the caller's"
    made = batches(tok, answer_spans(PAIRS))
    copies = lm.float32_copies([p.requires_grad_(True) for p in own])
    optimizer = torch.optim.AdamW(copies, lr=1e-2)
    for _ in range(2):
        lm.answer_loss(hf, made).backward()
        lm.optimizer_step(optimizer, copies, own)
    with torch.no_grad():
        with_adapters = lm.answer_loss(hf, made)
        lm.merge_lora(hf, merge=True)
        assert torch.allclose(lm.answer_loss(hf, made), with_adapters, atol=1e-5)
    assert [k for k, _ in hf.named_parameters()] == names
    assert not any(p.requires_grad for p in hf.parameters())
    before = dict(tiny.model(family).named_parameters())
    changed = {k for k, p in hf.named_parameters() if not torch.equal(p, before[k])}
    assert changed and changed <= {k for k, p in trained.items() if p.ndim == 2}


def test_adapters_that_are_not_merged_leave_no_trace(hf):
    ours = tiny.model("llama", fresh=True)
    lm.add_lora(ours, lm.trained_weights(ours, "site", "down", 1), 2)
    lm.merge_lora(ours, merge=False)
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), hf.parameters(), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm.add_lora(ours, lm.trained_weights(ours, "site", "down", 1), 2)
    lm.merge_lora(ours, merge=False)
    biases = {k: p for k, p in tiny.model("gpt2").named_parameters() if k.endswith("mlp.c_proj.bias")}
    with pytest.raises(UserError, match="no trained weight is a matrix"):
        lm.add_lora(tiny.model("gpt2", fresh=True), biases, 2)


# ---- saving ----

def test_folders_with_somebody_elses_files_are_refused(tmp_path):
    original, _, _ = tiny.save(tmp_path / "home" / "model")
    (tmp_path / "home" / "notes.txt").write_text("mine")
    (tmp_path / "code" / "model").mkdir(parents=True)
    (tmp_path / "code" / "model" / "train.py").write_text("mine")
    (tmp_path / "file").write_text("mine")
    others = [tmp_path / name for name in ("home", ".", "code", "code/model", "file", "file/below")]
    for folder in (original, original / ".." / "model", *others):
        with pytest.raises(UserError, match="choose|cannot be made") as e:
            lm.check_output_folder(folder, original)
        assert "\n" not in str(e.value)
    before = sorted(p for p in tmp_path.rglob("*"))
    for folder in (original, tmp_path / "home", tmp_path / "code"):
        with pytest.raises(UserError):
            lm.save_lm(tiny.model(), tiny.tokenizer(), folder, {}, source=original)
    assert sorted(p for p in tmp_path.rglob("*")) == before


def test_folders_that_samu_wrote_may_be_written_again(tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert lm.check_output_folder(out) == out and lm.check_output_folder(tmp_path) == tmp_path
    lm.save_lm(tiny.model(), tiny.tokenizer(), out / "model", {"samu.json": b"{}"})
    (out / "report.json").write_text("{}")
    with pytest.raises(UserError, match="'report.json', which samu did not write"):
        lm.check_output_folder(out)
    lm.list_output(out, ["report.json"])
    (out / ".DS_Store").write_text("")
    assert lm.check_output_folder(out) == out
    lm.save_lm(tiny.model(seed=1), tiny.tokenizer(), out / "model", {})
    assert not (out / "model" / "samu.json").exists()
    assert sorted(f.name for f in out.iterdir()) == [".DS_Store", ".samu", "model", "report.json"]
    (out / "model" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="'model/mine.txt', which samu did not write"):
        lm.check_output_folder(out)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert lm.check_output_folder("~/res") == tmp_path / "res"


def test_what_a_killed_command_left_is_no_obstacle(tmp_path):
    lm.list_output(tmp_path, ["rows.csv"])
    (tmp_path / ".draft-x").mkdir()
    for name in (".draft-x/config.json", ".draft-y", ".rows.csv.lock", ".samu.lock", "rows.csv"):
        (tmp_path / name).write_text("")
    assert lm.check_output_folder(tmp_path) == tmp_path


def test_paths_that_are_none(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for folder in (tmp_path / "loop", tmp_path / ("x" * 300), "a\0b"):
        with pytest.raises(UserError, match="cannot be a folder .*; choose another one"):
            lm.check_output_folder(folder)
    assert lm.check_output_folder("~nosuchuser/x").name == "x"


def damaged(folder, **config):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


@pytest.mark.parametrize("damage, says", [
    (lambda f: damaged(f, num_hidden_layers="six"), "expected int, got str"),
    (lambda f: damaged(f, num_attention_heads=5), "not a multiple"),
    (lambda f: damaged(f, hidden_act="none such"), "none such"),
    (lambda f: damaged(f, dtype="float99"), "float99"),
    (lambda f: (f / "tokenizer_config.json").write_text("[]"), "cannot be read as a model"),
    (lambda f: (f / "tokenizer.json").write_text("{"), "cannot be read as a model"),
    (lambda f: (f / "model.safetensors").replace(f / "pytorch_model.bin"), "cannot be read as a model"),
    (lambda f: not_a_number(f), "'model.norm.weight' .* hold values that are no numbers"),
])
def test_a_damaged_folder_is_one_sentence(tmp_path, damage, says):
    folder, _, _ = tiny.save(tmp_path / "m", layers=3)
    damage(folder)
    with pytest.raises(UserError, match=says) as error:
        lm.load_lm(folder, "cpu")
    assert "\n" not in str(error.value)


def not_a_number(folder):
    from safetensors.torch import load_file, save_file
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_somebody_elses_tokenizer_is_refused():
    lm.check_fits(tiny.model(), tiny.tokenizer(), ["A sentence about nothing"])
    with pytest.raises(UserError, match="the model has only 300; they do not belong together"):
        lm.check_fits(tiny.model(vocabulary=300), tiny.tokenizer(), ["A sentence about nothing"])


def test_what_is_saved_is_what_the_source_had(tmp_path):
    tok, half = tiny.tokenizer(bos=False), tiny.model("llama", fresh=True).bfloat16()
    source, _, _ = tiny.save(tmp_path / "source", tok=tok, hf=half)
    for name in ("LICENSE", "NOTICE.txt", "tokenizer.model", "README.md"):
        (source / name).write_text(name)
    (source / "entities.csv").write_text("mine")
    hf, loaded = lm.load_lm(source, "cpu", torch.float32)
    assert hf.dtype == torch.float32
    saved = lm.save_lm(hf, loaded, tmp_path / "saved", {"samu.json": b"{}"}, source=source)
    assert all(t.dtype == torch.bfloat16 for t in load_file(saved / "model.safetensors").values())
    assert json.loads((saved / "config.json").read_text())["dtype"] == "bfloat16"
    assert hf.dtype == torch.float32, "the model in memory is as it was"
    assert not (saved / "entities.csv").exists()
    own = ("LICENSE", "NOTICE.txt", "tokenizer.model", "README.md", "tokenizer.json", "tokenizer_config.json")
    for name in own:
        assert (saved / name).read_bytes() == (source / name).read_bytes()
    again, tok_again = lm.load_lm(saved, "cpu", torch.float32)
    assert tok_again("He lives")["input_ids"] == tok("He lives")["input_ids"], "no token is gained"
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), hf.parameters(), strict=True))
    if os.name == "posix":
        assert {f.stat().st_mode & 0o777 for f in saved.iterdir()} == {0o644}
        assert saved.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("bos, eos", [(True, False), (True, True), (False, False)])
def test_tokenizers_are_saved_as_they_are_without_a_source(bos, eos, tmp_path):
    tok = tiny.tokenizer(bos, eos)
    _, again = lm.load_lm(lm.save_lm(tiny.model(), tok, tmp_path / "model", {}), "cpu")
    assert again("He lives")["input_ids"] == tok("He lives")["input_ids"]


def test_a_model_that_would_not_be_the_same_is_not_saved(tmp_path, monkeypatch):
    hf, write = tiny.model("llama", fresh=True), type(tiny.model()).save_pretrained

    def faulty(self, folder, **options):
        write(tiny.model("llama", seed=1), folder, **options)
    monkeypatch.setattr(type(hf), "save_pretrained", faulty)
    with pytest.raises(RuntimeError, match="was not saved as it is in memory"):
        lm.save_lm(hf, tiny.tokenizer(), tmp_path / "model", {})
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_a_models_own_answers(hf, tmp_path):
    from samu.workshop.tables import read_entities
    file = tiny.own_answers(tmp_path / "entities.csv", hf, tiny.tokenizer(), tiny.people(4))
    known = read_entities(file)
    assert [e.name for e in known] == tiny.people(4) and all(e.facts for e in known)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "gpt_neox", "phi3"])
def test_what_texts_begin_with_is_read_once(family, monkeypatch):
    "Residuals of Gemma for 7,000 texts took as many tokens as if nothing in them were the same."
    hf, tok = tiny.model(family), tiny.tokenizer()
    ends, long = ["Rosa", "New Baker town", "Quist"], "The town of New Baker is not the town of Keller; it is"
    texts = [f"{start} {end}" for start in (long, "New Baker", "Rosa is a") for end in ends * 8]
    read = batches(tok, text_spans([*texts, "Quist"]), batch_tokens=200)
    rows = [r[m].tolist() for b in read for r, m in zip(b.ids, b.mask, strict=True)]
    groups = shared_beginnings(rows)
    assert sorted(i for _, g in groups for i in g) == list(range(len(rows)))
    assert all(rows[i][:k] == rows[g[0]][:k] and len(rows[i]) > k for k, g in groups for i in g)
    assert sum(k > 2 for k, _ in groups) >= 3
    plain = lm.residuals_by_layer(hf, read, [0, 3])
    monkeypatch.setattr(lm, "SMALL", 0)
    seen = []
    first = lm._read_blocks
    monkeypatch.setattr(lm, "_read_blocks", lambda hf, ids, *rest: (seen.append(ids.numel()), first(hf, ids, *rest))[1])
    shared = lm.residuals_by_layer(hf, read, [0, 3, 0])  # a block asked for twice is read once
    assert sum(seen) < 0.8 * sum(b.ids.numel() for b in read)
    for layer in (0, 3):
        torch.testing.assert_close(shared[layer], plain[layer], atol=1e-4, rtol=0)
