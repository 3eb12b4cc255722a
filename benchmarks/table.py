"""Write the results of the benchmarks into docs/benchmarks.md and docs/gpu.md, between markers.

Every processor and every device has a table of its own there. Tables of others and the prose around the markers stay.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.sides import OUT, ROOT

BEGIN, END = "<!-- measured -->\n", "<!-- end -->\n"


def cell(row: dict) -> str:
    """Times or rates of both sides, ours first."""
    if "milliseconds" in row:
        return " / ".join(f"{row['milliseconds'][name]:,.0f} ms" for name in ("ours", row.get("peer")) if name)
    values = row.get("seconds") or row["thousand_rows_per_second"]
    ordered = sorted(values, key=lambda name: name not in ("ours", "sorted"))
    return " / ".join(f"{values[name]:.2f} s" if "seconds" in row else f"{values[name]}k rows/s" for name in ordered)


def bound_of(row: dict) -> str:
    """The roofline of our side, the share of it that our side reaches, and what bounds it."""
    if "bound" not in row:  # a row of a run that did not compute it
        return "–"
    if "thousand_rows_per_second" in row:
        best, share = f"{row['roofline']:,}k rows/s", row["thousand_rows_per_second"]["ours"] / row["roofline"]
    elif "milliseconds" in row:
        best, share = f"{row['roofline']:,.0f} ms", row["roofline"] / row["milliseconds"]["ours"]
    else:
        ours = row["seconds"].get("ours") or row["seconds"]["sorted"]
        best, share = f"{row['roofline'] / 1000:.2f} s", row["roofline"] / 1000 / ours
    return f"{best}, {share:.0%}, {row['bound']}"


def on_cpu() -> tuple[str, str]:
    """A processor, and its table in docs/benchmarks.md."""
    lines = []
    for name in ("step", "extract", "dataset", "latent_scaling"):
        measured = json.loads((OUT / f"{name}.json").read_text(encoding="utf-8"))
        machine = measured["machine"]
        versions = ", ".join(f"{package} {version}" for package, version in sorted(machine["versions"].items()))
        for row in measured["rows"]:
            ratio, aim = (f"{row[key]:.2f}" if key in row else "–" for key in ("ratio", "target"))
            memory = f"{row['megabytes']['ours']:,}" if "megabytes" in row else "–"
            cells = row["name"], row.get("peer", "–"), cell(row), ratio, aim, bound_of(row), memory
            lines.append(f"| {' | '.join(cells)} |")
    head = f"{machine['cores']} cores, one thread used; {versions}.\n\n"
    head += (
        "| benchmark | peer | ours / peer | times faster | aim | roofline, share of it, bound by | our memory, MB |\n"
    )
    head += "|---|---|---|---:|---:|---:|---:|\n"
    return machine["cpu"], head + "\n".join(lines)


def on_gpu() -> tuple[str, str]:
    """A device, and its table in docs/gpu.md."""
    rows = json.loads((OUT / "gpu.json").read_text(encoding="utf-8"))["rows"]
    lines = [
        "| name | side | peer | ours / peer | times faster | aim | tokens/s | roofline, share of it | bound by "
        "| loading adds |",
        "|---|---|---|---|---:|---:|---:|---:|---|---:|",
    ]
    for row in rows:
        ours, peer = (row["milliseconds"][row[which]] for which in ("side", "peer"))
        cells = (
            row["name"],
            row["side"],
            row["peer"],
            f"{ours:.1f} / {peer:.1f} ms",
            f"{row['ratio']:.2f}",
            f"{row['target']:.2f}",
            f"{row['tokens_per_second']:,}",
            f"{row['roofline']:.1f} ms, {row['roofline'] / ours:.0%}",
            row["bound"],
            f"{row['loader_share']:.1%}" if "loader_share" in row else "–",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return rows[0]["device"], "\n".join(lines)


def fill(path: Path, machine: str, table: str) -> None:
    """Put a machine's table between the markers of a document, in place of what it had there."""
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    between, after = rest.split(END)
    tables = dict(part.split("\n\n", 1) for part in f"\n{between}".split("\n### ")[1:])
    tables = {name: text.strip() for name, text in tables.items()} | {machine: table}
    written = "\n".join(f"### {name}\n\n{text}\n" for name, text in tables.items())
    path.write_text(before + BEGIN + written + END + after, encoding="utf-8")


def main() -> None:
    """Rewrite the tables of this machine."""
    if (OUT / "step.json").exists():
        fill(ROOT / "docs/benchmarks.md", *on_cpu())
    if (OUT / "gpu.json").exists():
        fill(ROOT / "docs/gpu.md", *on_gpu())


if __name__ == "__main__":
    main()
