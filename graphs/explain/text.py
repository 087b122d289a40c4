"""An explanation as text for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from graphs.explain.changes import Change, ranked
from graphs.explain.explain import Explanation

_SIDES = {"user": "cyan", "item": "yellow", "constant": "dim"}
MEETINGS = 8


def amount(value: float, unit: str = "") -> str:
    """Format a number with three digits and k, M or G."""
    for bound, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= bound:
            return f"{value / bound:.3g} {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()


def count(number: int, thing: str) -> str:
    """Format a count: "1 node", "2 nodes"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def summary(e: Explanation) -> str:
    """Return the headline of an explanation: one line each for the limit, the sides and the state."""
    state = f"{amount(e.state_bytes, 'B')} per user in {count(len(e.state), 'tensor')}"
    if e.plain_state_bytes > e.state_bytes:
        state += f", {amount(e.plain_state_bytes, 'B')} without recomputing {count(len(e.recomputed), 'cheap node')}"
    return (
        f"{e.reusable_share:.1%} of the FLOPs run once per request; "
        f"limit {e.speedup_limit:.2f}x at {e.candidates} candidates\n"
        f"user {amount(e.user_flops, 'FLOP')} once, item {amount(e.item_flops, 'FLOP')} per candidate, "
        f"whole {amount(e.full_flops, 'FLOP')} per candidate\n"
        f"state {state}"
    )


def render(e: Explanation) -> RenderableType:
    """Return an explanation for a rich console: modules, state, hoisted products, and where the sides meet."""
    shown: list[RenderableType] = [summary(e), _modules(e), _state(e)]
    if e.hoisted:
        hoisted = Table("hoisted product", "saved per candidate", "state per user", title="Hoisted to the user graph")
        for h in e.hoisted:
            hoisted.add_row(h.where, amount(h.saved_flops, "FLOP"), amount(h.state_bytes, "B"))
        shown.append(hoisted)
    if changes := ranked(e):
        shown.append(_changes(changes, e.speedup_limit))
    if e.unmasked:
        shown.append(_unmasked(e))
    if e.meetings:
        shown.append(_meetings(e))
    return Group(*shown)


def _modules(e: Explanation) -> Table:
    table = Table("module", "side", title="Cost by module")
    for name in ("once per request", "per candidate", "weights"):
        table.add_column(name, justify="right")
    for m in e.modules:
        sides = Text(" + ").join(Text(s, _SIDES[s]) for s in m.sides)
        table.add_row(
            m.path,
            sides,
            amount(m.user_flops, "FLOP") if "user" in m.sides else "",
            amount(m.item_flops, "FLOP") if "item" in m.sides else "",
            amount(m.weight_bytes, "B") if m.weight_bytes else "",
        )
    return table


def _state(e: Explanation) -> Table:
    table = Table(
        "state tensor", "shape per user", "dtype", "bytes", title="User state, from the user to the item graph"
    )
    for s in e.state:
        shape = " x ".join(str(n) for n in s.row_shape) or "1"
        table.add_row(s.name, shape, str(s.dtype).removeprefix("torch."), amount(s.bytes_per_user, "B"))
    return table


def _changes(changes: tuple[Change, ...], now: float) -> Table:
    title = f"What keeps user and item together, by what a change would win (limit now {now:.2f}x)"
    table = Table("", "where", "change", title=title, caption="upper bounds, of each change alone")
    for name in ("saved per candidate", "of the FLOPs", "limit"):
        table.add_column(name, justify="right")
    for rank, c in enumerate(changes[:MEETINGS], start=1):
        table.add_row(
            str(rank), c.where, c.change, amount(c.saved_flops, "FLOP"), f"{c.share:.0%}", f"{c.speedup_limit:.2f}x"
        )
    return table


def _unmasked(e: Explanation) -> Table:
    title = "Attention in which user positions see item positions"
    caption = (
        "a constant mask that hides item positions from user positions would move about this to once per request"
    )
    table = Table("attention", title=title, caption=caption)
    for name in ("user share of its positions", "saved per candidate", "of the FLOPs"):
        table.add_column(name, justify="right")
    for u in e.unmasked:
        part = f"{u.movable_flops / e.full_flops:.0%}"
        where = f"{u.where} (masked by a finite number: use -inf)" if u.finite else u.where
        table.add_row(where, f"{u.user_share:.0%}", amount(u.movable_flops, "FLOP"), part)
    return table


def _meetings(e: Explanation) -> Table:
    title = "Where user information first meets item information"
    table = Table(
        "node", title=title, caption="limit if masked: an upper bound, with the user's values separated by UG-Sep"
    )
    for name in ("user share", "computed from it", "limit now", "limit if masked"):
        table.add_column(name, justify="right")
    for m in e.meetings[:MEETINGS]:
        table.add_row(
            m.where,
            f"{m.user_share:.0%}",
            amount(m.downstream_flops, "FLOP"),
            f"{e.speedup_limit:.2f}x",
            f"{max(m.speedup_limit, e.speedup_limit):.2f}x",
        )
    if len(e.meetings) > MEETINGS:
        table.add_row(f"... and {len(e.meetings) - MEETINGS} more", "", "", "", "")
    return table
