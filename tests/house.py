"""The rules of the house: each is a function that lists what is wrong. tests/test_house.py asks for empty
lists.

Notebooks come as {name: notebook}, names as `05_forgetting` or `workshop/store`; modules as {name:
text}, names as `forgetting`, `workshop.store`, `__init__`.
"""

import ast
import json
import re
import symtable
from collections import Counter, defaultdict
from pathlib import Path

from notebook_cases import called, code_cells, syntax_tree

ROOT = Path(__file__).resolve().parent.parent
WORKSHOP = ["registry", "digests", "store", "runtime", "replies", "tables", "names", "experiments", "privacy"]
WORKSHOP += ["chat", "batching", "lm", "invented", "statistics", "leaks", "setups", "sae_files", "targets", "loop"]
WORKSHOP += ["clamping", "plots", "measuring", "witnesses", "asking", "relearning", "attacking", "auditing"]
WORKSHOP += ["benchmarks", "cards", "console", "course", "drawings", "explore", "latent_pages", "planning"]
ABOVE = {"tuning": 7.5}  # workshop notebooks that stand on chapters, and the last of those
FRONT_DOOR = {"load", "unlearn", "evaluate", "compare", "audit"}
COLUMNS, CHAPTER, CELL, EXPORTED_CELL, FUNCTION, ROW = 110, 200, 15, 20, 30, 3
# All of the package: the method, the course, and the tools around them. It may shrink; to grow takes a reason here.
# The comment that nbdev puts above each exported cell counts, too: 44 characters and a line for each of 680 cells.
# 756,400 and not 756,000: readers are shown a chat model's questions without the template around them.
# 760,200 and 12,925 lines: a chat model is held in place by its own replies, not by the table's answers; replies
# that have ended are not continued; the first token of a text, which is no part of a name's residuals, is left out.
# 764,050 and 12,981 lines: registries import the chapters that register in them; a plan takes --no-chat;
# people who were forgotten are looked for in retained texts by every name; a reply follows a request as the
# chat template writes it.
# 766,700 and 13,015 lines: workers of a sweep import ahead; what is given away is no folder for results; a text too
# long for a model with places of its own is refused; a lens reads the first token of a chat model's reply.
# 777_500 and 13_180 lines: results of another person, command or model are not replaced; the audit takes --alias; the
# options of all commands stand anywhere; a prompt that asks for no fact is refused; nbgrader's sources; a person who
# was purged is still a case; runs under autocast, over another run or in float64 are kept apart or refused; checkers
# say where a reader's function stopped, and name twenty more mistakes.
CHARACTERS, LINES, BYTES = 777_500, 13_180, 1_500_000
FIRST = {"02_residuals": (10, r"register_forward_hook"), "05_forgetting": (15, r"\bunlearn\(")}


def notebooks(root=ROOT):
    found = sorted((root / "nbs").rglob("*.ipynb"))
    found = [p for p in found if ".ipynb_checkpoints" not in p.parts]
    return {
        p.relative_to(root / "nbs").with_suffix("").as_posix(): json.loads(p.read_text("utf-8"))
        for p in found
    }


def modules(root=ROOT):
    found = [p for p in sorted((root / "samu").rglob("*.py")) if p.name != "_modidx.py"]
    return {".".join(p.relative_to(root / "samu").with_suffix("").parts): p.read_text("utf-8") for p in found}


def chapter(name):
    "The number of a chapter; None for the index and the workshop."
    match = re.match(r"(\d\d)_", name)
    return int(match[1]) if match else None


def markdown(notebook):
    "(number, text) of the markdown cells."
    cells = enumerate(notebook["cells"], 1)
    return [(n, "".join(c["source"])) for n, c in cells if c["cell_type"] == "markdown"]


# --- Imports only downward


def exports_to(notebook):
    "The module that a notebook exports, if any."
    found = (cell.directives.get("default_exp") for cell in code_cells(notebook))
    return next((module for module in found if module), None)


def floor(name):
    "Where a notebook stands: the workshop, then the chapters, then the front door and the index."
    if name.startswith("workshop/") and name.split("/")[1] in WORKSHOP:
        return WORKSHOP.index(name.split("/")[1]) - len(WORKSHOP)
    if name.startswith("workshop/") and name.split("/")[1] in ABOVE:
        return ABOVE[name.split("/")[1]]
    return 100 if chapter(name) is None else chapter(name)


def executed(tree):
    "All nodes of a tree but those that only a type checker reads."
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING"):
            yield from executed(child)


def imported_modules(source):
    "Modules of the package that a cell imports, in functions too: `forgetting`, `workshop.store`."
    found = set()
    for node in executed(syntax_tree(source)):
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("samu.") for a in node.names if a.name.startswith("samu.")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "samu":
            inner = node.module.removeprefix("samu").lstrip(".")
            package = inner in ("", "workshop")
            found |= {f"{inner}.{a.name}".lstrip(".") for a in node.names} if package else {inner}
    return {module for module in found - FRONT_DOOR if not module.startswith("__")}


def upward_imports(nbs):
    floors = {exports_to(nb): floor(name) for name, nb in nbs.items() if exports_to(nb)}
    faults = []
    for name, nb in nbs.items():
        for cell in code_cells(nb):
            own = 0 if cell.exported else 1  # a notebook may use its own module outside the module
            for module in sorted(imported_modules(cell.source)):
                there = floors.get(module)
                if there is None:
                    faults.append(f"{name}, cell {cell.number}: no notebook exports samu.{module}")
                elif there >= floor(name) + own and floor(name) != 100:
                    faults.append(f"{name}, cell {cell.number}: samu.{module} is not below")
    return faults


# --- Short


def tall_cells(nbs):
    "Cells and chapters that are longer than a reader takes in at once."
    faults = []
    for name, nb in nbs.items():
        if chapter(name) is None:
            continue
        cells = code_cells(nb)
        for cell in cells:
            most = EXPORTED_CELL if cell.exported else CELL
            if len(cell.lines) > most:
                faults.append(f"{name}, cell {cell.number}: {len(cell.lines)} lines, {most} at most")
        total = sum(len(cell.lines) for cell in cells if cell.exported)
        if total > CHAPTER:
            faults.append(f"{name}: exports {total} lines, {CHAPTER} at most")
    return faults


def long_functions(mods):
    faults = []
    for name, text in mods.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > FUNCTION:
                    faults.append(f"samu.{name}.{node.name}: {length} lines, {FUNCTION} at most")
    return faults


def wide_lines(nbs):
    "Lines of code over the limit. Prose wraps in the reader's window."
    found = [
        (name, cell, line)
        for name, nb in nbs.items()
        for cell in code_cells(nb)
        for line in cell.source.splitlines()
    ]
    return [
        f"{name}, cell {cell.number}: {len(line)} columns: {line.strip()[:40]}"
        for name, cell, line in found
        if len(line) > COLUMNS
    ]


def long_rows(nbs):
    "More code cells in a row than a reader follows without a sentence."
    faults = []
    for name, nb in nbs.items():
        row = 0
        for number, cell in enumerate(nb["cells"], 1):
            row = row + 1 if cell["cell_type"] == "code" else 0
            if row == ROW + 1:
                faults.append(f"{name}, cell {number}: {row} code cells in a row")
    return faults


def late_results(nbs):
    "What a reader has to wait for too long."
    faults = []
    for name, (latest, pattern) in FIRST.items():
        hits = [
            cell.number
            for cell in code_cells(nbs[name])
            if re.search(pattern, cell.source) and not re.search(rf"def {pattern}", cell.source)
        ]
        if not hits or hits[0] > latest:
            faults.append(f"{name}: first {pattern} in cell {hits[:1]}, {latest} at the latest")
    return faults


def too_large(mods):
    lines = sum(1 for text in mods.values() for line in text.splitlines() if line.strip())
    characters = sum(map(len, mods.values()))
    faults = [f"{lines} lines, {LINES} at most"] if lines > LINES else []
    return faults + ([f"{characters} characters, {CHARACTERS} at most"] if characters > CHARACTERS else [])


# --- Nothing twice, nothing for nothing


def body_lines(function):
    "The lines of a function's statements as Python would write them, without docstrings."
    body = function.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    return "\n".join(map(ast.unparse, body)).splitlines()


def duplicates(mods, size=6):
    "Runs of lines that stand in two functions."
    seen = defaultdict(set)
    for name, text in mods.items():
        for _, node, _ in statements({name: ast.parse(text)}):
            if isinstance(node, ast.FunctionDef):
                lines = [line.strip() for line in body_lines(node)]
                for i in range(len(lines) - size + 1):
                    seen["\n".join(lines[i : i + size])].add(f"samu.{name}.{node.name}")
    pairs = {tuple(sorted(places)) for places in seen.values() if len(places) > 1}
    return [f"the same {size} lines: {', '.join(places)}" for places in sorted(pairs)]


def names_used(tree):
    "How often each name is read in a tree: as a name, an attribute, or a word in a short string."
    found = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            found[node.id] += 1
        elif isinstance(node, ast.Attribute):
            found[node.attr] += 1
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 200:
            found.update(re.findall(r"[A-Za-z_]\w*", node.value))
    return found


REGISTERS = {"objective", "method", "metric", "attack", "retain_loss", "part", "command", "callback"}


def decorators(node):
    calls = [d.func if isinstance(d, ast.Call) else d for d in getattr(node, "decorator_list", [])]
    return {getattr(d, "id", getattr(d, "attr", None)) for d in calls}


def statements(trees):
    "(module, statement) of all statements at the top of modules, and of the members of their classes."
    for name, tree in trees.items():
        for node in tree.body:
            yield name, node, None
            if isinstance(node, ast.ClassDef):
                yield from ((name, member, node) for member in node.body)


def defines(node):
    "The names that a statement gives."
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    return [target.id for target in targets if isinstance(target, ast.Name)]


def unused_definitions(mods, elsewhere):
    "Definitions that neither the package nor the code elsewhere reads. What registers itself is used."
    trees = {name: ast.parse(text) for name, text in mods.items() if name != "__init__"}
    uses = sum((names_used(tree) for tree in trees.values()), Counter())
    for text in [*elsewhere, mods.get("__init__", "")]:
        uses += names_used(syntax_tree(text))
    faults = []
    for module, node, _ in statements(trees):
        if decorators(node) & REGISTERS:
            continue
        own = names_used(node)
        faults += [
            f"samu.{module}: nothing uses {name}"
            for name in defines(node)
            if not name.startswith(("__", "_all_")) and uses[name] - own[name] - in_all(trees[module], name) <= 0
        ]
    return faults


def in_all(tree, name):
    "1 if a module's `__all__` names it: that is no use."
    lists = [n.value for n in tree.body if isinstance(n, ast.Assign) and defines(n) == ["__all__"]]
    return sum(names_used(values)[name] for values in lists)


def optional_parameters(node, owner):
    "(name, position or None) of the parameters of a function, or fields of a dataclass, with a default."
    if isinstance(node, ast.ClassDef):
        fields = [f for f in node.body if isinstance(f, ast.AnnAssign)]
        return [(f.target.id, i) for i, f in enumerate(fields) if not isinstance(f.value, (ast.Call, type(None)))]
    first = 1 if owner is not None and "staticmethod" not in decorators(node) else 0
    positional = (node.args.posonlyargs + node.args.args)[first:]
    start = len(positional) - len(node.args.defaults)
    named = [(a.arg, None) for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults) if d is not None]
    return [(a.arg, i) for i, a in enumerate(positional) if i >= start] + named


def parameters_set(trees):
    "{function: (names passed, most arguments by place, whether all may be passed)} over all calls."
    found = defaultdict(lambda: [set(), 0, False])
    for node in (n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Call)):
        name, args = called(node), node.args
        if name == "partial" and args:
            name, args = getattr(args[0], "id", getattr(args[0], "attr", None)), args[1:]
        entry = found[name]
        entry[0] |= {k.arg for k in node.keywords if k.arg}
        entry[1] = max(entry[1], len(args))
        entry[2] = (
            entry[2]
            or any(k.arg is None for k in node.keywords)
            or any(isinstance(a, ast.Starred) for a in args)
        )
    return found


def unset_parameters(mods, elsewhere):
    "Parameters with a default that no call sets. Commands are set from outside; `replace` sets fields."
    trees = {name: ast.parse(text) for name, text in mods.items()}
    everything_read = [*trees.values(), *map(syntax_tree, elsewhere)]
    calls, nodes = parameters_set(everything_read), (node for tree in everything_read for node in ast.walk(tree))
    assigned = {n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    faults = []
    for module, node, owner in statements(trees):
        is_class = isinstance(node, ast.ClassDef) and "dataclass" in decorators(node)
        if not (isinstance(node, ast.FunctionDef) or is_class) or decorators(node) & {"command", "callback"}:
            continue
        name = owner.name if owner is not None and node.name == "__init__" else node.name
        passed, most, everything = calls[name]
        passed = passed | (calls["replace"][0] | assigned if is_class else set())
        faults += [
            f"samu.{module}.{name}: nothing sets {parameter}"
            for parameter, place in optional_parameters(node, owner)
            if not everything and parameter not in passed and (place is None or place >= most)
        ]
    return faults


# --- Words

WORDS = re.compile(
    r"stranger|nobody|\bdonor|\bguess|invented names?\b|prove it|samu\[|\bten bars\b"
    r"|bystander|take_back|toward_known|how_known|less_known|both_retain|from_folder_",
    re.I,
)


def words_not_said(texts):
    "Words for which the house has another one (shared vocabulary: unknown, stand-in, prior, threshold ...)."
    faults = []
    for name, text in texts.items():
        found = Counter(match.lower() for match in WORDS.findall(text.replace("mimetypes.guess", "")))
        faults += [f"{name}: {word} ({count})" for word, count in sorted(found.items())]
    return faults


def all_texts(nbs, mods):
    "Code, prose and shown outputs, by where they stand."
    texts = {f"samu.{name}": text for name, text in mods.items()}
    for name, nb in nbs.items():
        cells = ["".join(cell["source"]) for cell in nb["cells"]]
        outputs = [output_text(o) for cell in nb["cells"] for o in cell.get("outputs", ())]
        texts[name] = "\n".join(cells + outputs)
    return texts


THRESHOLD = re.compile(r"(?:at most|at least) \d\.\d+|\d\.\d+ to \d\.\d+")


def other_thresholds(text):
    "Thresholds that a text says of a metric, its name in code quotes on the same line, and that are not its own."
    from samu.workshop.registry import METRICS
    from samu.workshop.statistics import good_is

    faults = []
    for line in text.splitlines():
        names = [n for pair in re.findall(r"`(\w+)`|<code>(\w+)</code>", line) for n in pair if n in METRICS]
        said = THRESHOLD.findall(line)
        if len(names) == 1 and said:
            good = good_is(METRICS[names[0]])
            faults += [f"{names[0]} should be {good}, not {s}" for s in said if s != good]
    return faults


# --- A notebook runs from top to bottom in an empty cache, too


def reads_and_gives(source, functions):
    """Names that a cell reads when it runs, and names that it gives.

    What a function or class reads goes to `functions`: it is read when somebody calls it.
    """
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        top = symtable.symtable(TransformerManager().transform_cell(source), "cell", "exec")
    except SyntaxError:
        return set(), set()

    def inside(table):
        own = {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
        return own.union(*map(inside, table.get_children()))

    symbols = top.get_symbols()
    gives = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported() or s.is_namespace()}
    reads = {s.get_name() for s in symbols if s.is_referenced()}
    for child in top.get_children():
        if child.get_name() in gives:
            functions[child.get_name()] = inside(child)
        else:  # a comprehension, or a lambda, which a cell mostly calls at once
            reads |= inside(child)
    return reads, gives


def used_too_early(nb):
    "Names that a cell needs, itself or through functions, and that only a later cell gives."
    cells, functions, given, faults = code_cells(nb), {}, set(), []
    gives = [reads_and_gives(c.source, {})[1] for c in cells]
    for i, cell in enumerate(cells):
        todo, needed = list(reads_and_gives(cell.source, functions)[0]), set()
        while todo:
            name = todo.pop()
            if name not in needed:
                needed.add(name)
                todo += functions.get(name, ())
        given |= gives[i]
        later = needed & set().union(*gives[i + 1 :]) - given
        faults += [f"cell {cell.number}: {n} comes later" for n in sorted(later)]
    return faults


# --- Stored clean

PROGRESS = re.compile(r"\d%\|.*\||\b(HBox|IntProgress|FloatProgress)\(|\bit/s\b")
MACHINE_PATH = re.compile(r"(?<![\w./:~-])/(work|root|tmp|home|Users|private|var/folders)/")


def output_text(output):
    "The text of an output, without pictures."
    data = output.get("data", {})
    parts = [output.get("text", "")] + [v for k, v in data.items() if k.startswith("text/")]
    return "\n".join("".join(part) for part in parts)


def has_alt_text(output):
    "Whether a picture says what it shows to readers who cannot see it."
    alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
    return len(alt) >= 20 or bool(re.search(r"<img[^>]*\balt=.{20}", output_text(output)))


def dirt(output):
    "What is wrong with a stored output."
    text = output_text(output)
    if output["output_type"] == "error":
        yield "an error"
    if output.get("name") == "stderr":
        yield "stderr"
    if PROGRESS.search(text):
        yield "a progress bar"
    if MACHINE_PATH.search(text):
        yield f"a path of some machine: {MACHINE_PATH.search(text)[0]}"
    if "image/png" in output.get("data", {}) and not has_alt_text(output):
        yield "a figure without alt text"


def unclean(nb, size):
    "What should not be in a stored notebook."
    faults = ["metadata.widgets"] if "widgets" in nb["metadata"] else []
    if size > BYTES:
        faults.append(f"{size:,} bytes")
    for number, cell in enumerate(nb["cells"], 1):
        for output in cell.get("outputs", ()):
            faults += [f"cell {number}: {what}" for what in dirt(output)]
        if "gpu" in directives_of(cell) and "torch.cuda.is_available()" not in "".join(cell["source"]):
            faults.append(f"cell {number}: fails without a GPU in Run All Cells")
    return faults


def directives_of(cell):
    from notebook_cases import directives

    return directives("".join(cell["source"])) if cell["cell_type"] == "code" else {}


# --- Links


def dead_links(text, root):
    "Relative links to files that do not exist."
    links = re.findall(r"""\]\(([^\s)#]+)|\b(?:src|href)="([^"#]+)""", text)
    found = [link for pair in links for link in pair if link and not re.match(r"[a-z]+:", link)]
    return [link for link in found if not (Path(root) / link).exists()]


# --- Requirements


def third_party(mods):
    "{package that is imported: whether some module imports it when it is itself imported}."
    found = {}
    for name, text in mods.items():
        tree = ast.parse(text)
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for package in {n.split(".")[0] for n in names}:
                found[package] = found.get(package, False) or (node in tree.body and name != "cli")
    return found
