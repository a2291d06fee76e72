"""The API reference as Markdown, read from the exported modules: signatures, docstrings, what each
parameter means (the comment behind it), and a link to the notebook cell that defines it. Nothing is
imported.
"""

import ast
import html
import io
import re
import tokenize

CELL = re.compile(r"^# %% (?:\.\./)*nbs/(?P<notebook>[\w/]+)\.ipynb #(?P<cell>\w+)", re.M)


def reference(root):
    "{page: Markdown} for all modules of the package."
    pages = {}
    for path in sorted((root / "samu").rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        if path.name != "_modidx.py" and path.read_text(encoding="utf-8").strip():
            pages[f"api/{name}"] = module_page(name, path.read_text(encoding="utf-8"))
    modules = {n.removeprefix("api/"): first_line(t) for n, t in pages.items() if n != "api/samu"}
    lines = [f"- [{name}]({name}.md): {about}" for name, about in modules.items()]
    pages["api/samu"] += "\n## Modules\n\n" + "\n".join(lines) + "\n"
    return pages


def first_line(page):
    "The first sentence of a module's page."
    lines = [line for line in page.splitlines() if line and not line.startswith(("#", "(", "<"))]
    return lines[0] if lines else ""


def module_page(module, text):
    "The page of one module."
    tree, comments, cells = ast.parse(text), line_comments(text), list(CELL.finditer(text))
    about = next(filter(None, map(string, tree.body[:2])), "")  # nbdev puts the version before it
    parts = [f"# {module}\n\n{about}\n"]
    public = next((ast.literal_eval(n.value) for n in tree.body if assigns(n, "__all__")), [])
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in public:
            parts.append(entry(module, node, text, comments, cells))
    return "\n".join(parts)


def string(node):
    "The text of a statement that is only a string."
    return node.value.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else ""


def assigns(node, name):
    return isinstance(node, ast.Assign) and any(getattr(t, "id", None) == name for t in node.targets)


def line_comments(text):
    "{line: comment} of a module."
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {t.start[0]: t.string.lstrip("# ").rstrip() for t in tokens if t.type == tokenize.COMMENT}


def entry(module, node, text, comments, cells):
    "The reference of a function or class: anchor, signature, docstring, parameters, link to its cell."
    kind = "class" if isinstance(node, ast.ClassDef) else "function"
    lines = [f'<a id="{module}.{node.name}"></a>\n', f"## {node.name}\n"]
    said = html.escape(ast.get_docstring(node) or "", quote=False)
    lines += [f"```python\n{signature(node)}\n```\n", f"{said}\n"]
    rows = fields(node, comments) if kind == "class" else parameters(node, comments)
    if rows:
        lines += ["| | type | default | |", "| --- | --- | --- | --- |", *map(table_row, rows), ""]
    if kind == "class":
        lines += [method_entry(m, comments) for m in node.body if is_public_function(m)]
    lines.append(source_link(text, node, cells))
    return "\n".join(lines) + "\n"


def is_public_function(node):
    return isinstance(node, ast.FunctionDef) and not node.name.startswith("_")


def method_entry(node, comments):
    "A method of a class, shorter."
    rows = parameters(node, comments)
    lines = [f"**`.{node.name}`** {html.escape(ast.get_docstring(node) or '', quote=False)}\n"]
    if rows:
        lines += ["| | type | default | |", "| --- | --- | --- | --- |", *map(table_row, rows), ""]
    return "\n".join(lines)


def signature(node):
    "A definition on one line or several, without its body and comments."
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    returns = f" -> {annotation(node.returns)}" if node.returns else ""
    pieces = [unparsed(a, d, star) for a, d, star in arguments(node)]
    line = f"{node.name}({', '.join(pieces)}){returns}"
    if len(line) <= 100:
        return line
    return f"{node.name}(\n" + "".join(f"    {piece},\n" for piece in pieces) + f"){returns}"


def arguments(node):
    "(argument, default or None, stars) in order."
    plain = node.args.posonlyargs + node.args.args
    gaps = [None] * (len(plain) - len(node.args.defaults))
    yield from ((a, d, "") for a, d in zip(plain, [*gaps, *node.args.defaults], strict=True))
    if node.args.vararg:
        yield node.args.vararg, None, "*"
    elif node.args.kwonlyargs:
        yield None, None, "*"
    yield from ((a, d, "") for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
    if node.args.kwarg:
        yield node.args.kwarg, None, "**"


def unparsed(argument, default, stars):
    if argument is None:
        return "*"
    kind = f": {annotation(argument.annotation)}" if argument.annotation else ""
    text = f"{stars}{argument.arg}{kind}"
    return text if default is None else f"{text} = {ast.unparse(default)}"


def annotation(node):
    "A type as written, without the quotes of one that is not imported."
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)


def parameters(node, comments):
    "(name, type, default, meaning) of the parameters that say something, and of what is returned."
    rows = []
    for argument, default, stars in arguments(node):
        if argument is None or argument.arg in ("self", "cls"):
            continue
        kind = annotation(argument.annotation) if argument.annotation else ""
        value = ast.unparse(default) if default is not None else ""
        alone = sum(a.lineno == argument.lineno for a, _, _ in arguments(node) if a is not None) == 1
        meaning = comments.get(argument.end_lineno, "") if alone and argument.lineno > node.lineno else ""
        rows.append((stars + argument.arg, kind, value, meaning))
    if node.returns is not None and annotation(node.returns) != "None":
        said = comments.get(node.returns.end_lineno, "")
        rows.append(("returns", annotation(node.returns), "", said))
    return rows


def fields(node, comments):
    "The same for the fields of a dataclass."
    found = [f for f in node.body if isinstance(f, ast.AnnAssign)]
    rows = []
    for f in found:
        default = ast.unparse(f.value) if f.value else ""
        rows.append((f.target.id, annotation(f.annotation), default, comments.get(f.end_lineno, "")))
    return rows


def table_row(row):
    "A line of a table; code in code marks, bars and angle brackets escaped."
    name, kind, default, meaning = (cell.replace("\n", " ").replace("|", "\\|") for cell in row)
    marked = [f"`{cell}`" if cell else "" for cell in (name, kind, default)]
    return f"| {' | '.join(marked)} | {html.escape(meaning, quote=False)} |"


def source_link(text, node, cells):
    "Where the definition stands, explained: the cell of its notebook."
    before = [m for m in cells if text.count("\n", 0, m.start()) + 1 < node.lineno]
    if not before:
        return ""
    notebook, cell = before[-1]["notebook"], before[-1]["cell"]
    return f'<p><a href="../{notebook}.html#{cell}">Source: {notebook}</a></p>'
