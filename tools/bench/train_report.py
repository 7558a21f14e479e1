"""Records of bench_train: ratios between modes, Markdown tables."""

from __future__ import annotations

from typing import Any

from common.documents import markdown

Record = dict[str, Any]


def add_ratios(records: list[Record]) -> None:
    """Give each timed record 'speedup_over': how many times faster it is than each other mode."""
    timed = {record["mode"]: record["median_s"] for record in records if "median_s" in record}
    for record in records:
        if record["mode"] in timed:
            record["speedup_over"] = {
                mode: seconds / record["median_s"]
                for mode, seconds in timed.items()
                if mode != record["mode"]
            }


def tables(document: Record) -> str:
    """Time, memory and profile as Markdown."""
    records = document["records"]
    parts = [_time_table(document)] if any("median_s" in r or "error" in r for r in records) else []
    if any("memory" in record for record in records):
        parts.append(_memory_table(records))
    profiled = [record for record in records if "profile" in record]
    if profiled:
        parts += [_kind_table(profiled), _convolution_table(profiled)]
    return "\n\n".join(parts)


def _time_table(document: Record) -> str:
    records = document["records"]
    baselines = [r["mode"] for r in records if not r["mode"].startswith("int8") and "median_s" in r]
    header = ["mode", "ms", "quartiles ms", "samples/s", *(f"× {mode}" for mode in baselines)]
    rows = []
    for record in records:
        if "error" in record:
            words = " ".join(record["error"].split())[:160]
            rows.append([record["mode"], f"FAILED: {words}", *[None] * (len(header) - 2)])
            continue
        ratios = record["speedup_over"]
        rows.append(
            [
                record["mode"],
                record["median_s"] * 1e3,
                f"{record['q25_s'] * 1e3:.0f}–{record['q75_s'] * 1e3:.0f}",
                record["samples_per_s"],
                *(1.0 if mode == record["mode"] else ratios[mode] for mode in baselines),
            ]
        )
    a = document["arguments"]
    title = (
        f"### {a['model']}, batch {a['batch']}, {a['size']} pixels, {document['threads']} threads, "
        f"{document['backend']}, allocator {document['allocator']['setting']}"
    )
    if a.get("cuda_graph"):
        title += ", CUDA graph"
    return f"{title}\n\n{markdown(header, rows)}"


def _memory_table(records: list[Record]) -> str:
    header = ["mode", "peak MB", "within an iteration MB", "of each process MB",
              "kept by convolutions MB", "without the first MB", "kept in all MB"]  # fmt: skip
    rows = []
    for record in records:
        memory = record.get("memory", {})
        if "peak_over_baseline" not in memory:
            words = record.get("error") or memory.get("error", "not measured")
            rows.append([record["mode"], f"FAILED: {' '.join(words.split())[:160]}", *[None] * 5])
            continue
        saved = memory["saved_for_backward"] or {}
        peaks = [memory["peak_over_baseline"], memory["iteration"]]
        each = memory.get("iteration_of_each", [memory["iteration"]])
        spread = f"{min(each) / 1e6:.0f}–{max(each) / 1e6:.0f}"
        kept = [saved.get("convolutions"), saved.get("int8_layers"), saved.get("all")]
        peaks, kept = ([None if v is None else v / 1e6 for v in part] for part in (peaks, kept))
        rows.append([record["mode"], *peaks, spread, *kept])
    return "### Memory\n\n" + markdown(header, rows)


def _kind_table(records: list[Record]) -> str:
    kinds = list(dict.fromkeys(kind for r in records for kind in r["profile"]["by_kind"]))
    rows = [
        [kind, *(_ms(record["profile"]["by_kind"].get(kind)) for record in records)]
        for kind in kinds
    ]
    totals = (sum(record["profile"]["by_kind"].values()) for record in records)
    rows.append(["sum", *(_ms(total) for total in totals)])
    header = ["kind", *(f"{record['mode']} ms" for record in records)]
    return "### Where an iteration's time goes (profiled)\n\n" + markdown(header, rows)


def _convolution_table(records: list[Record]) -> str:
    by_mode = {
        record["mode"]: {
            (tuple(row["x_size"]), tuple(row["w_size"])): row
            for row in record["profile"]["by_convolution"]
        }
        for record in records
    }
    by_mode = {mode: rows for mode, rows in by_mode.items() if rows}
    keys = list(dict.fromkeys(key for rows in by_mode.values() for key in rows))
    header = ["x", "w", "calls"]
    for mode in by_mode:
        header += [f"{mode} forward ms", f"{mode} backward ms"]
    table = []
    for x_size, w_size in keys:
        found = [rows.get((x_size, w_size)) for rows in by_mode.values()]
        calls = max(row["calls"] for row in found if row)
        cells = ["x".join(map(str, x_size)), "x".join(map(str, w_size)), f"{calls:.0f}"]
        for row in found:
            cells += [_ms(row["forward_s"]), _ms(row["backward_s"])] if row else [None, None]
        table.append(cells)
    return "### By convolution (profiled)\n\n" + markdown(header, table)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
