"""The report of `transformers-owl check` as Markdown, to paste into an issue."""


def markdown(report: dict) -> str:
    """A report of [`check`] as Markdown."""
    parts = [f"# {report['model']}\n", table(["", ""], facts(report))]
    if (logits := report["logits"]) is not None:
        rows = [
            [" ".join(f"{value:.4f}" for value in row) for row in (expected, found)]
            for expected, found in zip(logits["expected"], logits["found"], strict=True)
        ]
        parts += ["## Logits\n", table(["reference", "here"], rows)]
    if "answers" in report:
        keys = ("question_id", "question", "answer", "published")
        rows = [[*(str(row[key]) for key in keys), f"{row['similarity']:.2f}"] for row in report["answers"]]
        parts += ["## Answers to OwlEval\n", table([*keys, "similarity"], rows)]
    if "download" in report:
        rows = [
            [path, f"{file['bytes']:,}", file.get("sha256", file.get("sha1"))]
            for path, file in report["download"]["files"].items()
        ]
        parts += ["## Files, with the Hub's digests\n", table(["file", "bytes", "digest"], rows)]
    return "\n".join(parts)


def facts(report: dict) -> list[list[str]]:
    machine, speed, peak = report["machine"], report["speed"], report["peak_memory_bytes"]
    logits = report["logits"]
    known = "no reference"
    if logits is not None:
        known = f"{'agree' if logits['ok'] else 'DIFFER'}: {logits['difference']:.2g} (allowed {logits['tolerance']:g})"
    rows = [
        ["logits", known],
        ["load", f"{report['load_seconds']:.1f} s"],
        ["first token", f"{speed['first_token_seconds']:.2f} s"],
        ["tokens per second", f"{speed['tokens_a_second']:.2f}"],
        *([f"peak memory, {where}", f"{size / 1e9:.2f} GB"] for where, size in peak.items()),
        ["memory of the machine", f"{machine['memory_bytes'] / 1e9:.1f} GB"],
        *([name, str(value)] for name, value in machine.items() if name != "memory_bytes"),
    ]
    if "answers" in report:
        mean = sum(row["similarity"] for row in report["answers"]) / len(report["answers"])
        rows.insert(1, ["OwlEval, similarity to the published answers", f"{mean:.2f} of {len(report['answers'])}"])
    if "download" in report:
        download = report["download"]
        rows[:0] = [["commit", download["commit"]], ["download", f"{download['seconds']:.0f} s"]]
    return rows


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(escape, line))} |\n" for line in lines)


def escape(text: str) -> str:
    """Text for one table cell, with markup escaped."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
