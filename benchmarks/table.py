"""Write what the benchmarks found into docs/benchmarks.md, between its markers; the prose around them stays."""

from __future__ import annotations

import json

from benchmarks.race import OUT, ROOT

BEGIN, END = "<!-- measured -->\n", "<!-- end -->\n"


def cell(row: dict) -> str:
    """What both sides took."""
    if "milliseconds" in row:
        return " / ".join(f"{row['milliseconds'][name]:,.0f} ms" for name in ("ours", row.get("rival")) if name)
    values = row.get("seconds") or row["thousand_rows_per_second"]
    ordered = sorted(values, key=lambda name: name not in ("ours", "sorted"))
    return " / ".join(f"{values[name]:.2f} s" if "seconds" in row else f"{values[name]}k rows/s" for name in ordered)


def main() -> None:
    """Rewrite the table."""
    lines, path = [], ROOT / "docs/benchmarks.md"
    for name in ("step", "extract", "feed", "latent_scaling"):
        found = json.loads((OUT / f"{name}.json").read_text(encoding="utf-8"))
        machine = found["machine"]
        versions = ", ".join(f"{package} {version}" for package, version in sorted(machine["versions"].items()))
        for row in found["rows"]:
            ratio, aim = (f"{row[key]:.2f}" if key in row else "–" for key in ("ratio", "target"))
            memory = f"{row['megabytes']['ours']:,}" if "megabytes" in row else "–"
            floor = (
                f"{row['floor']:.0f} ms, {row['floor'] / row['milliseconds']['ours']:.0%}" if "floor" in row else "–"
            )
            cells = row["name"], row.get("rival", "–"), cell(row), ratio, aim, floor, memory
            lines.append(f"| {' | '.join(cells)} |")
    head = f"{machine['cpu']}, {machine['cores']} cores, one thread used; {versions}.\n\n"
    head += "| benchmark | rival | ours / rival | times faster | aim | floor, share of it | our memory, MB |\n"
    head += "|---|---|---|---:|---:|---:|---:|\n"
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    path.write_text(before + BEGIN + head + "\n".join(lines) + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
