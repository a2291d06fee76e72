"""Tiny models of random weights, one of each family, with a real tokenizer, and a table of a model's answers.

Nothing here needs a network or a GPU. `tokenizer` and `model` are made once per process; ask for `fresh=True`
before you change weights.
"""
import copy
import csv
import functools
import random
import re
import sys
from pathlib import Path

import torch

FIRST = ("Anna Bruno Clara David Elena Felix Greta Hugo Irene Jonas Karla Louis Maria Nils Olga Paul Quinn "
         "Rosa Simon Tara").split()
LAST = ("Abbot Baker Carver Dorn Ewald Falk Gruber Hansen Ibsen Jensen Keller Lund Moser Nagel Olsen Peters "
        "Quist Roth Sommer Thorn").split()
WORDS = ("The town of a person is known. What was the first job that she had in that city? He lives there "
         "and works for the team. Question and answer, as everyone knows: name it. A sentence about nothing "
         "in particular follows, and another one.")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gemma3", "phi3", "olmo2", "gpt2",
            "gpt_neox")
TIED = ("gemma2", "gemma3_text", "gemma3", "gpt2", "qwen3")


@functools.cache
def tokenizer(bos=True, eos=False, size=600):
    "A byte-level BPE that may add <s> in front and </s> behind."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast
    made = Tokenizer(models.BPE(unk_token=None))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    bytes_ = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<pad>", "<s>", "</s>"],
                                  show_progress=False, initial_alphabet=bytes_)
    made.train_from_iterator([WORDS] * 20 + [f"{a} {b}" for a in FIRST for b in LAST], trainer)
    if bos or eos:
        single = ("<s> " if bos else "") + "$A" + (" </s>" if eos else "")
        numbers = [("<s>", 1), ("</s>", 2)]
        made.post_processor = processors.TemplateProcessing(single=single, special_tokens=numbers)
    starts = dict(bos_token="<s>") if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", **starts)


def config(family, vocabulary, hidden=32, layers=4):
    "A configuration that shows what is peculiar to a family: short windows, bounded logits, tied heads."
    import transformers as T
    ends = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.15)
    common = dict(vocab_size=vocabulary, hidden_size=hidden, intermediate_size=2 * hidden,
                  num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
                  max_position_embeddings=512, tie_word_embeddings=family in TIED, **ends)
    kinds = ["sliding_attention", "full_attention"] * layers
    gemma = dict(head_dim=hidden // 4, query_pre_attn_scalar=hidden // 4, sliding_window=6,
                 layer_types=kinds[:layers])
    own = {"mistral": dict(sliding_window=6), "qwen3": dict(head_dim=hidden // 4),
           "gemma2": gemma | dict(final_logit_softcapping=2.0), "gemma3_text": gemma}.get(family, {})
    if family == "gpt2":
        return T.GPT2Config(vocab_size=vocabulary, n_embd=hidden, n_layer=layers, n_head=4, n_positions=512,
                            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **ends)
    if family == "gemma3":
        vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                      image_size=16, patch_size=8)
        text = T.Gemma3TextConfig(**common, **gemma)
        return T.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4,
                              image_token_index=5, boi_token_index=6, eoi_token_index=7, **ends)
    return T.AutoConfig.for_model(family, **common, **own)


@functools.cache
def _model(family, hidden, layers, seed, vocabulary):
    from transformers import AutoModelForCausalLM
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        hf = AutoModelForCausalLM.from_config(config(family, vocabulary, hidden, layers))
    return hf.eval().requires_grad_(False)


def model(family="llama", hidden=32, layers=4, seed=0, vocabulary=None, fresh=False):
    "A frozen model of random weights; the same object each time unless it is to be `fresh`."
    made = _model(family, hidden, layers, seed, vocabulary or len(tokenizer()))
    return copy.deepcopy(made) if fresh else made


def save(folder, family="llama", tok=None, hf=None, **more):
    "A Hugging Face folder with a tiny model: (folder, model, tokenizer)."
    folder = Path(folder)
    tok, hf = tok or tokenizer(), hf or model(family, **more)
    hf.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder, hf, tok


def people(n=40, seed=0):
    "Names."
    names = [f"{a} {b}" for a in FIRST for b in LAST]
    random.Random(seed).shuffle(names)
    return names[:n]


def own_answers(file, hf, tok, names, kind="person", attributes=("town", "job", "team"), prompts=None):
    "Write a table in which everything that the model says is true, so it knows everybody. Returns the file."
    from samu.workshop.lm import generate
    from samu.workshop.tables import Entity, default_prompts
    prompts = prompts or default_prompts([Entity(n, kind, {a: ("x",) for a in attributes}) for n in names])
    asked = [(n, p.attribute, p.text.replace("{name}", n)) for n in names for p in prompts]
    facts = {}
    replies = generate(hf, tok, [t for _, _, t in asked], 5)
    for (name, attribute, _), reply in zip(asked, replies, strict=True):
        word = re.search(r"\w+", reply.strip().split("\n")[0])
        if word and word[0] not in name.split():  # an answer that stands in the name tells nothing
            facts.setdefault((name, attribute), {})[word[0]] = None
    with Path(file).open("w", newline="", encoding="utf-8") as f:
        rows = csv.writer(f)
        rows.writerow(["name", "kind", "attribute", "answers"])
        rows.writerows([n, kind, a, "|".join(said)] for (n, a), said in facts.items())
    return Path(file)


def run_samu(monkeypatch, capfd, args, columns):
    "Runs the command line in this process: exit code, what it printed, what it complained about."
    from samu.cli import main

    monkeypatch.setattr(sys, "argv", ["samu", *map(str, args)])
    monkeypatch.setenv("COLUMNS", str(columns))
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code or 0
    out, err = capfd.readouterr()
    return code, out, err
