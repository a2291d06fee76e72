"The commands around a run: check, plan, purge, benchmark, and options from a file."
import json
from types import SimpleNamespace

import pytest
import tiny
import typer
from samu.cli import app
from samu.workshop import cards, console
from samu.workshop.registry import UserError
from test_chat import TEMPLATE


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    "A folder with a random model that knows everybody in its table."
    folder, hf, tok = tiny.save(tmp_path_factory.mktemp("setup") / "m", "llama", layers=6)
    tiny.own_answers(folder / "entities.csv", hf, tok, tiny.people(40))
    return folder


@pytest.fixture
def samu(tmp_path, monkeypatch, capfd):
    "Runs `samu` in this process: (exit code, what it printed, what it complained about)."

    def call(*args):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("SAMU_CACHE", str(tmp_path / "cache"))
        return tiny.run_samu(monkeypatch, capfd, args, columns=200)

    return call


def test_check_says_what_would_happen_and_trains_nothing(samu, setup, tmp_path):
    name = tiny.people(40)[3]
    code, out, err = samu("check", name, "--setup", setup)
    assert code == 0, err[-2000:]
    for words in ("llama, 6 blocks of width 32", "none: it continues texts", "after block 3",
                  "questions right", "may still be given", "are known", "GB at the peak", "report.json",
                  "this can be run"):
        assert words in " ".join(out.split()), words
    assert not (tmp_path / "out").exists() and not list((tmp_path / "cache").glob("saes/*"))


def test_check_refuses_in_true_words(samu, setup, tmp_path):
    lines = (setup / "entities.csv").read_text().splitlines()
    few = tmp_path / "few.csv"
    few.write_text("\n".join(lines[:10]) + "\n")
    code, out, err = samu("check", tiny.people(40)[0], "--setup", setup, "--people", few, "--only")
    assert code == 2 and "this cannot be run" in " ".join(out.split())
    assert "no kind has 8 known and 8 unknown names" in err and "add people of one kind" in err
    assert len(err.strip().split("\n")) == 1
    code, out, err = samu("check", "Nobody Atall", "--setup", setup)
    assert code == 2 and "no entity 'Nobody Atall'" in err
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("\n".join([lines[0], *(line.rsplit(",", 1)[0] + ",zzz" for line in lines[1:4]), *lines[4:]]))
    code, out, err = samu("check", tiny.people(40)[0], "--setup", setup, "--people", wrong)
    assert code == 2 and "is not known" in err and "0 of 3 attributes" in err
    assert f"samu entities --setup {setup} --grade known lists who is" in err  # not those of the default setup


def test_plan_needs_no_weights(samu, setup, tmp_path, monkeypatch):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "entities.csv"):
        (bare / name).write_bytes((setup / name).read_bytes())
    code, out, err = samu("plan", "--setup", bare, "--gpu-gb", 24, "--methods", "npo,lora")
    assert code == 0 and "yes" in out and "logits" in out, err[-2000:]
    code, out, err = samu("plan", "--setup", bare, "--frozen-bits", 4)
    assert code == 0 and "lora" in out and "npo" not in out, err[-2000:]
    for method, bits, says in [("npo", 8, "is frozen in few bits"), ("lora", 3, "frozen_bits is 8 or 4, not 3")]:
        code, out, err = samu("plan", "--setup", bare, "--methods", method, "--frozen-bits", bits)
        assert code == 2 and says in err and len(err.strip().split("\n")) == 1
    code, out, err = samu("plan", "--setup", "biographies", "--frozen-bits", 4)
    assert code == 2 and "argument 'frozen_bits'; leave it out" in err
    code, out, err = samu("plan", "--setup", bare, "--methods", "nothing")
    assert code == 2 and "no method 'nothing'" in err
    (bare / "chat_template.jinja").write_text(TEMPLATE)
    monkeypatch.setattr("samu.workshop.planning.plan_rows", lambda exp, *_: [dict(template=str(exp.settings.chat))])
    for option, says in (([], "True"), (["--no-chat"], "False")):
        code, out, err = samu("plan", "--setup", bare, *option)
        assert code == 0 and says in out, err[-2000:]


def test_whoever_loads_a_setup_can_leave_its_template_out():
    commands = typer.main.get_command(app).commands
    options = {name: {o for p in c.params for o in p.opts} for name, c in commands.items()}
    assert {name for name, own in options.items() if "--setup" in own and "--no-chat" not in own} == set()


def test_a_kind_that_is_not_kept_is_refused_with_and_without_clear(samu):
    for clear in ([], ["--clear"]):
        code, out, err = samu("cache", "--kind", "nope", *clear)
        assert code == 2 and "nothing of kind 'nope' is kept" in err and not out


def test_purge_says_what_it_cannot_reach(samu, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text(json.dumps(dict(target=["Roger Federer"])))
    (tmp_path / "out" / ".samu").write_text("report.json\n")
    code, out, err = samu("purge", "Roger Federer", "out")
    assert code == 0 and "removed" in out and "Out of reach" in out, err[-2000:]
    assert not (tmp_path / "out" / "report.json").exists() and "--people" not in out
    code, out, err = samu("purge", "Some Body")
    assert code == 0 and "No table here has facts about 'Some Body'" in out and "--people takes yours" in out
    code, out, err = samu("purge", "Roger Federer", "nowhere")
    assert code == 2 and "there is no folder 'nowhere'" in err


def test_a_card_says_no_more_than_its_table():
    card = dict(base_setup="base", cases=["case-1"], method="triplet", seed=0, samu_version="0",
                settings=dict(steps_taken=1))
    text = cards.model_card(card, [dict(target_recall=1.0), dict(target_recall=1.0)], "")
    assert "| facts given | 1.00 | 1.00 |" in text and "no longer" not in text, text
    text = cards.model_card(card, [dict(target_recall=0.0), dict(target_recall=float("nan"))], "")
    assert "| facts given | 0.00 | - |" in text, text


def test_benchmark_files_are_read_before_the_model(samu, tmp_path):
    code, out, err = samu("benchmark", "tofu", tmp_path, "--model", "nowhere", "--out", tmp_path / "b")
    assert code == 2 and "no file 'forget10_perturbed.json'" in err
    code, out, err = samu("benchmark", "other", tmp_path, "--model", "nowhere", "--out", tmp_path / "b")
    assert code == 2 and "tofu and rwku" in err


def test_words_of_a_file(tmp_path):
    commands = {
        name: SimpleNamespace(params=[SimpleNamespace(name=w, nargs=1, multiple=w == "alias") for w in words.split()])
        for name, words in {"unlearn": "steps lora_rank alias", "audit": "out seeds"}.items()}
    file = tmp_path / "c.toml"
    for alias, as_list in (('["A", "B"]', ["A", "B"]), ('"A"', ["A"])):
        file.write_text(f'steps = 5\nout = "a"\nseeds = [0, 1]\n[unlearn]\nlora-rank = 4\nalias = {alias}\n')
        assert console.config_defaults(file, commands) == dict(
            unlearn=dict(steps=5, lora_rank=4, alias=as_list), audit=dict(out="a", seeds="0,1"))
    for text, says in [("steps =", "not valid TOML"), ("stepz = 1", "no command takes 'stepz'"),
                       ("[unlearn]\nout = 1", "unlearn takes no 'out'"), ("steps = true", "steps takes a value, not true"), ("[nothing]\na = 1", "takes 'nothing'")]:
        file.write_text(text)
        with pytest.raises(UserError, match=says):
            console.config_defaults(file, commands)
    with pytest.raises(UserError, match="cannot be read"):
        console.config_defaults(tmp_path / "none.toml", commands)


def test_a_log_that_was_cut_off_is_begun_again(tmp_path):
    for text in ("", "half a li", "2026 began: {\n", "2026 began: {}\n2026 done\n"):
        (tmp_path / console.LOG_FILE).write_text(text)
        console.begin(tmp_path, True)  # without a report nothing has finished
        (tmp_path / "report.json").touch()
        console.refuse_replacing(tmp_path, dict(command="unlearn"))


def test_the_same_request_may_be_made_again_in_other_words(tmp_path):
    (tmp_path / "report.json").touch()
    began = {"unlearn": dict(names=["Ann Lee", "Bo Ray"], setup="m"), "audit": dict(model="runs/m1/model")}
    again = {"unlearn": dict(names=["bo ray", "Ann Lee"], setup="./m/"), "audit": dict(model="runs/m1")}
    other = {"unlearn": dict(names=["Bo Ray"], setup="m"), "audit": dict(model="runs/m2")}
    for name, options in began.items():
        (tmp_path / console.LOG_FILE).write_text(f"began: {json.dumps(dict(command=name) | options)}\n")
        console.refuse_replacing(tmp_path, dict(command=name) | again[name])
        with pytest.raises(UserError, match="which this would replace"):
            console.refuse_replacing(tmp_path, dict(command=name) | other[name])


def test_two_commands_do_not_write_into_one_folder(tmp_path):
    from filelock import FileLock
    from samu.workshop.store import LOCK
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / LOCK), pytest.raises(UserError, match="another command is writing to .*choose another --out"):
        console.open_log(out)
    try:
        console.open_log(out, "rows.csv")
    finally:
        console.LOG.handlers.clear()
        console.LOCKS.clear()


def test_settings_are_checked_before_anything_is_asked(samu, setup):
    name = tiny.people(40)[3]
    for option, says in ((["--lr", "inf"], "lr must be"), (["--blocks", "5-5"], "first trained block is 5"),
                         (["--blocks", "2-99"], "no blocks 2 to 99"), (["--out", "x" * 300], "cannot be a folder")):
        code, out, err = samu("unlearn", name, "--setup", setup, *option)
        assert code == 2 and says in err and err.startswith("samu: ") and len(err.splitlines()) == 1, err[-2000:]


def test_an_option_that_would_do_nothing_is_refused(samu, setup):
    for command, says in ((("unlearn", tiny.people(40)[3], "--in-turn"), "--in-turn is for several people"),
                          (("entities", "--only"), "--only is for a table of your own")):
        code, out, err = samu(*command, "--setup", setup)
        assert code == 2 and says in err and len(err.splitlines()) == 1, err[-2000:]


def test_a_sweep_writes_into_no_folder_of_others(samu, setup, tmp_path):
    (tmp_path / "run.sh").touch(0o755)
    code, out, err = samu("sweep", setup / "entities.csv", "--setup", setup, "--out", ".")
    assert code == 2 and "'run.sh', which samu did not write" in err
    (tmp_path / "names.csv").write_text("name\n\n")
    code, out, err = samu("sweep", "names.csv", "--setup", setup, "--out", "s")
    assert code == 2 and "names.csv holds no names" in err


def test_blocks():
    assert [console.block_range(t) for t in (None, "site", "all", "3-9")] == [None, "site", "all", (3, 9)]
    for text in ("3 to 9", "²-3", "", "-1-3"):
        with pytest.raises(UserError, match="two numbers"):
            console.block_range(text)
    for text in ("²", "", "1,,2", "9" * 20):
        with pytest.raises(UserError, match="whole numbers"):
            console.numbers(text)


def test_a_config_file_is_used(samu, setup, tmp_path):
    (tmp_path / "c.toml").write_text(f'setup = "{setup}"\n[entities]\ngrade = "wrong"\n')
    for words in (("--config", "c.toml", "entities"), ("entities", "--config", "c.toml"), ("entities", "--config=c.toml")):
        code, out, err = samu(*words)
        assert code == 2 and "not 'wrong'" in err, err[-2000:]
    (tmp_path / "n.toml").write_text("people = 7\n")
    code, out, err = samu("--config", "n.toml", "entities", "--setup", setup)
    assert code == 2 and "no file '7'" in err
    code, out, err = samu("--config", "c.toml", "entities")
    assert code == 2 and "--grade is known" in err
    code, out, err = samu("--config", "c.toml", "entities", "--grade", "known", "--names")
    assert code == 0 and tiny.people(40)[3] in out
