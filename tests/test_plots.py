"""Figures: one palette, labels that are demanded, names that are drawn as they are written."""

import ast
from pathlib import Path

import pandas as pd
import pytest
from samu.workshop.plots import (
    KNOWN,
    METHOD_STYLE,
    PALETTE,
    UNKNOWN,
    bars,
    bars_figure,
    cloud_figure,
    curves,
    figure,
    legend_label,
    method_style,
    plane_figure,
    png,
    save,
    show,
)
from samu.workshop.registry import UserError

HARD_NAMES = ["Ca$h_^ Mon$y", "$", "_Nemo", "{curly}", "50 % \\frac", "a\nb", "東京", "Łódź & <b>"]
PNG = b"\x89PNG"


def cloud(target="original"):
    dots = [dict(x=i % 7, y=i // 7, group=g) for g in ("known", "unknown") for i in range(20)]
    return pd.DataFrame([*dots, dict(x=0.0, y=0.0, group="original"), dict(x=900.0, y=-900.0, group=target)])


def intervals(methods):
    fields = ("target_recall", "retain_ratio")
    return pd.DataFrame(
        [
            dict(method=m, field=f, n=8, mean=0.1 * i, low=0.0, high=0.2)
            for i, m in enumerate(methods)
            for f in fields
        ]
    )


def test_no_two_known_methods_look_alike_and_new_ones_are_stable():
    assert len(set(METHOD_STYLE.values())) == len(METHOD_STYLE)
    new = [f"method_{i}" for i in range(50)]
    assert not {method_style(n) for n in new} & set(METHOD_STYLE.values())
    assert [method_style(n) for n in new] == [method_style(n) for n in reversed(new)][::-1]


def test_a_new_method_looks_the_same_in_another_process(tmp_path):
    import subprocess
    import sys

    code = "from samu.workshop.plots import method_style; print(method_style('mine'))"
    for seed in ("1", "2"):
        out = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PATH": ""},
                             cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
        assert out.stdout.strip() == str(method_style("mine"))


def test_known_and_unknown_differ_for_the_colour_blind():
    """The two colours differ in lightness, too, so they can be told apart in grey."""
    assert {KNOWN, UNKNOWN} < set(PALETTE)
    grey = [sum(w * int(c[i : i + 2], 16) for w, i in ((0.3, 1), (0.59, 3), (0.11, 5))) for c in (KNOWN, UNKNOWN)]
    assert abs(grey[0] - grey[1]) > 40


@pytest.mark.parametrize("bad", [dict(title=""), dict(n=""), dict(x=""), dict(y=["one"], panels=["a", "b"])])
def test_a_figure_without_title_n_or_labels_is_refused(bad):
    good = dict(title="recall", n="8 people", x="share", y="method")
    with pytest.raises(UserError, match="a figure needs"):
        figure(**{**good, **bad})


def test_a_figure_says_n_and_its_axes():
    fig, axes = figure("recall", "8 people", ["share", "nats"], "method", ["left", "right"])
    assert "n = 8 people" in fig.get_suptitle()
    assert [ax.get_xlabel() for ax in axes] == ["share", "nats"]
    assert [ax.get_ylabel() for ax in axes] == ["method", "method"]


@pytest.mark.parametrize("name", HARD_NAMES)
def test_names_are_drawn_as_they_are_written(name):
    """Fault 2: matplotlib read `Ca$h_^ Mon$y` as mathematics, and nothing was saved."""
    shares = pd.DataFrame({"target recall": [1.0, 0.0]}, index=["original", name])
    assert png(cloud_figure(cloud(name), name, shares, f"Forgetting {name}")).startswith(PNG)
    assert png(bars_figure(shares, f"{name} and others", "1 person")).startswith(PNG)
    assert png(plane_figure(intervals([name, "triplet"]), title=name)).startswith(PNG)
    fig, [ax] = figure(name, name, name, name, [name])
    bars(ax, pd.Series([0.5], index=[name]))
    assert png(fig).startswith(PNG)


def test_log_axes_have_plain_numbers():
    fig, [ax] = figure("loss", "1 run", "step", "loss (nats)")
    ax.plot([1, 2, 3], [0.001, 0.1, 10])
    ax.set_yscale("log")
    png(fig)
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert "0.001" in labels and not any("$" in t for t in labels)


def test_names_with_an_underscore_are_in_the_legend():
    fig, [ax] = figure("curves", "1 run", "step", "loss")
    curves(ax, pd.DataFrame(dict(step=[0, 1], loss=[1.0, None], method="_mine")), "step", "loss")
    assert [t.strip() for t in ax.get_legend_handles_labels()[1]] == ["_mine"]
    assert legend_label("plain") == "plain"


def test_a_missing_value_is_no_bar_of_length_zero():
    fig, [ax] = figure("bars", "2 rows", "share", "method")
    bars(ax, pd.Series({"triplet": 0.0, "npo": None}, dtype=float))
    assert [t.get_text() for t in ax.texts] == ["0.00", "not measured"]


def test_the_target_is_drawn_inside_the_frame_however_far_out_it_is():
    fig = cloud_figure(cloud("triplet"), "Ada")
    marks = [c.get_offsets()[0] for c in fig.axes[0].collections if len(c.get_offsets()) == 1]
    low, high = fig.axes[0].get_xlim()
    assert len(marks) == 2 and all(low <= x <= high for x, _ in marks)


def test_show_demands_alt_text_and_gives_it_to_the_notebook(monkeypatch):
    import IPython.display

    fig, [ax] = figure("recall", "8 people", "share", "method")
    with pytest.raises(UserError, match="alt text"):
        show(fig, alt="bars")
    given = []
    monkeypatch.setattr(IPython.display, "display", lambda data, **options: given.append((data, options)))
    text = "An empty pair of axes, for want of people."
    show(fig, alt=text)
    [(data, options)] = given
    assert data["image/png"].startswith(PNG) and data["text/plain"] == text
    assert options["metadata"]["image/png"]["alt"] == text


def test_save_writes_a_whole_png(tmp_path):
    fig, _ = figure("recall", "8 people", "share", "method")
    file = save(fig, tmp_path / "deep" / "figure.png")
    assert file.read_bytes().startswith(PNG)
    assert [p.name for p in file.parent.iterdir()] == ["figure.png"]


def test_plots_import_neither_matplotlib_nor_torch():
    tree = ast.parse(Path(__file__).parents[1].joinpath("samu/workshop/plots.py").read_text())
    top = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    names = {a.name for n in top if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in top if isinstance(n, ast.ImportFrom)}
    assert not any("matplotlib" in n or "torch" in n or "seaborn" in n for n in names)
