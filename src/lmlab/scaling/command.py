"""What `lmlab scale fit`, `predict`, `plan` and `emergence` do and print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmlab.errors import Refused, nearest
from lmlab.run import write_json
from lmlab.scaling import emergence as abilities
from lmlab.scaling import fit as fitting
from lmlab.scaling.abilities import TABLE
from lmlab.scaling.approaches import APPROACHES, allocate
from lmlab.scaling.forms import FORMS
from lmlab.scaling.table import number, read


def fit_file(
    path: Path, law: str, loss: str, out: Path, columns: Mapping[str, str], group: str | None, **chosen: Any
) -> dict[str, Any]:
    """Fit, write the law file, and return it."""
    if law not in {**FORMS, **APPROACHES}:
        raise Refused(f"fit: '{law}' is no law{nearest(law, [*FORMS, *APPROACHES])}")
    rows = {key: chosen.pop(key) for key in ("max_warmup", "sequence_length", "discount_warmup")}
    needed = ("params", "compute") if law in APPROACHES else FORMS[law].needed
    if rows["discount_warmup"] and "tokens" not in needed:
        able = ", ".join(name for name, form in FORMS.items() if "tokens" in form.needed)
        raise Refused(f"fit: --discount-warmup counts tokens, which law {law} does not take; expected one of {able}")
    runs = read(path, needed, columns, loss, group, **rows)
    found = allocate(runs, law, **chosen) if law in APPROACHES else fitting.fit(
        runs, law, columns=columns, loss=loss, group=group, **chosen
    )  # fmt: skip
    if rows["discount_warmup"]:
        found["discount_warmup"] = {"sequence_length": rows["sequence_length"]}
    write_json(out, found)
    return found


def predict_file(law_file: Path, path: Path, loss: str) -> dict[str, Any]:
    """Predict the runs of a table by a law file, with the columns that it was fitted with, and tokens counted as there."""
    law = fitting.load(law_file)
    counted = law.get("discount_warmup")
    rows = {"discount_warmup": True, **counted} if counted else {}
    return fitting.predict(law, read(path, FORMS[law["law"]].needed, law["columns"], loss, law["group"], **rows))


def plan_for(given: Mapping[str, str | None], law_file: Path | None, **cost: Any) -> dict[str, Any]:
    """Numbers as a user writes them (7B, 1T) to a plan."""
    from lmlab.scaling.plan import plan

    wanted = {name: number(text, f"--{name}") for name, text in given.items() if text is not None}
    return plan(wanted, fitting.load(law_file, APPROACHES) if law_file else None, **cost)


def emergence_of(
    path: Path,
    scale: str,
    hard: str,
    soft: Sequence[str],
    by: Sequence[str],
    unit: str | None,
    gains: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Of each family and task the verdicts, and by scale what each of `gains` ({name: column}) lies above the hard metric. A task
    whose column is blank has no such gain."""
    named = [*gains.values()]
    tables = abilities.read(path, scale, [hard, *soft, *named], unit=unit, by=by, blank=named)
    found = []
    for key, table in tables.items():
        gained = {name: abilities.gains(table, column, hard) for name, column in gains.items()}
        found.append(
            {
                **dict(zip(by, key)),
                **abilities.emergence(table, hard, soft),
                "gains": {name: rows for name, rows in gained.items() if rows},
            }
        )
    return found


def emergence_of_ladder(out: Path, scale: str) -> list[dict[str, Any]]:
    """The same of a ladder's abilities.csv: every task over the seeds together, items resampled; `seeds` has each seed's own
    verdicts. Raises Refused where OUT holds none."""
    path = out / TABLE
    if not path.is_file():
        raise Refused(
            f"{out}: holds no {TABLE}; expected a table, or the directory of a finished `lmlab scale ladder` whose recipe has a "
            "stage abilities, such as the recipe emergence"
        )
    columns = {"few-shot": "few", "chain-of-thought": "chain", "instruction": "tuned"}
    soft = ["edits", "logp", "brier"]
    found = emergence_of(path, scale, "exact", soft, ["task"], "item", columns)
    alone = emergence_of(path, scale, "exact", soft, ["task", "seed"], "item", {})
    for each in found:
        each["seeds"] = {one["seed"]: one["verdicts"] for one in alone if one["task"] == each["task"]}
    return found


def describe_fit(found: Mapping[str, Any]) -> str:
    lines = [f"law: {found['law']}" + (f"; {_columns(found)}" if "loss" in found else "")]
    lines += [f"set aside: {len(found['set_aside'])} rows"] if found["set_aside"] else []
    lines += [f"  line {row['line']}: {row['reason']}" for row in found["set_aside"][:5]]
    for name, group in found["groups"].items():
        lines.append(f"{name} ({group['runs']} runs; 90% intervals)")
        lines += [
            f"  {key:<9} {e['value']:.4g} [{e['low']:.4g}, {e['high']:.4g}]" for key, e in group["constants"].items()
        ]
        held = group.get("held_out")
        if held:
            lines.append(
                f"  held out  the {held['held_out']} runs of most compute, by the other {held['fitted']}: median error "
                f"{held['relative_error']['median']:.2%}, largest {held['relative_error']['max']:.2%}, "
                f"{held['coverage90']:.0%} inside the 90% interval"
            )
        lines += [f"  warning   {each}" for each in group["warnings"]]
    return "\n".join(lines)


def _columns(found: Mapping[str, Any]) -> str:
    columns, form = {**found["columns"], "loss": found["loss"]}, FORMS[found["law"]]
    by_rate = ", tokens by their rate over the warm-up" if "discount_warmup" in found else ""
    return f"{', '.join(columns[name] for name in form.features)} -> {columns[form.target]}{by_rate}"


def describe_predictions(found: Mapping[str, Any]) -> str:
    lines = [f"{'line':>6} {'predicted':>9} {'90% interval':>17} {'measured':>9} {'error':>7}  group"]
    lines += [
        f"{r['line']:>6} {r['predicted']:>9.4f} {r['low']:>8.4f}-{r['high']:<8.4f} {r['measured']:>9.4f} "
        f"{r['relative_error']:>7.2%}  {r['group']}"
        for r in found["rows"]
    ]
    return "\n".join(
        [*lines, f"{found['runs']} runs: median error {found['relative_error']['median']:.2%}, "
         f"{found['coverage90']:.0%} inside the 90% interval, {len(found['set_aside'])} rows set aside"]
    )  # fmt: skip


def describe_plan(found: Mapping[str, Any]) -> str:
    lines = [
        f"{'law':<30} {'FLOPs':>9} {'params':>9} {'tokens':>9} {'loss':>7} {'tok/par':>8} {'days':>10} {'dollars':>12}"
    ]
    for row in found["rows"]:
        if "note" in row:
            lines.append(f"{row['law']:<30} {row['note']}")
            continue
        lines.append(
            f"{row['law']:<30} {_or_dash(row['compute'], '.3g'):>9} {_or_dash(row['params'], '.3g'):>9} "
            f"{_or_dash(row['tokens'], '.3g'):>9} {_or_dash(row['loss'], '.3f'):>7} {_or_dash(row['tokens_per_param'], '.3g'):>8} "
            f"{_or_dash(row['days'], '.3g'):>10} {_or_dash(row['dollars'], ',.0f'):>12}"
        )
        ends = [(name, row["low"][name], row["high"][name]) for name in row.get("low", ())]
        shown = [
            f"{name} {low:.3g} {'and more' if high is None else f'to {high:.3g}'}" for name, low, high in ends if low
        ]
        lines += [f"{'':<30} 90%: {', '.join(shown)}"] if shown else []
        if row.get("draws_without"):
            lines.append(f"{'':<30} {row['draws_without']} resampled laws know no best size, and are left out")
    if found["price"] is None:
        lines.append("dollars: give --price, dollars an hour of one GPU")
    lines.append("kaplan: parameters without embeddings, compute at a batch well below the critical one")
    lines.append(
        f"{found['gpus']} x {found['gpu']} at {found['utilisation']:.0%} of {found['peak_flops'] / 1e12:g} TFLOP/s"
    )
    return "\n".join(lines)


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def describe_emergence(found: Sequence[Mapping[str, Any]], by: Sequence[str], scale: str) -> str:
    lines = []
    for each in found:
        lines.append(", ".join(str(each[name]) for name in by) or "all rows")
        for name, metric in each["metrics"].items():
            point = f", change at {scale} {metric['change_point']:.3g}" if "change_point" in metric else ""
            lines.append(
                f"  {name:<16} {metric['verdict']:<8} advantage of a change-point {metric['advantage']:+.1f} "
                f"[{metric['low']:+.1f}, {metric['high']:+.1f}], "
                f"above 0 in {metric['share']:.0%} of resampled {metric['resampled']}{point}"
            )
        for name, verdict in each["verdicts"].items():
            own = [verdicts[name] for verdicts in each.get("seeds", {}).values()]
            agree = f" (of {len(own)} seeds alone {own.count(verdict)} say so)" if len(own) > 1 else ""
            lines.append(f"  with {name}: {verdict}{agree}")
        for name, rows in each["gains"].items():
            lines.append(f"  {name} gain, 95% intervals")
            lines += [f"    {scale} {r['scale']:<10.4g} {_ends(r)}" for r in rows]
    return "\n".join(lines)


def _ends(row: Mapping[str, Any]) -> str:
    ends = "" if row["low"] is None else f" [{row['low']:+.4f}, {row['high']:+.4f}]"
    return f"{row['value']:+.4f}{ends} (n={row['n']})"
