"""The numbers of a feature in the sentences that people read, each with what it is held against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modeldiff.format import fixed

if TYPE_CHECKING:
    from modeldiff.catalogue.table import FeatureRow, FeatureTable


def facts(table: FeatureTable, row: FeatureRow) -> dict[str, str]:
    """What was measured of a feature, by name; what was not is left out."""
    found = {
        "fires on": f"{row.density:.3%} of the pairs ({row.firing_count:,} of {table.info['pairs']:,})",
        "activation": f"mean {row.mean_activation:.2f} where it fires, at most {row.max_activation:.2f}",
        "relative norm": f"{row.relative_norm:.3f} (1: only in A's decoder, 0.5: alike, 0: only in B's)",
        "predictable": f"R² {fixed(row.r2_a)} from A's residual stream, {fixed(row.r2_b)} from B's (held out, linear)",
    }
    if row.verdict:
        found["verdict"] = (
            f"{row.verdict} (other model {fixed(row.r2_other)} of own {fixed(row.r2_own)}, chance "
            f"{fixed(row.r2_null)}; no linear analogue found is not proof that there is none)"
        )
    if row.tokens_differ is not None:
        note = ": the tokenizers may explain it" if table.mostly_differ_F[row.id] else ""
        found["tokens differ"] = f"at {row.tokens_differ:.0%} of its examples (they begin or end elsewhere){note}"
    twins = ", ".join(f"{t.id} ({t.partition}) {t.correlation:.2f}{'!' * t.strong}" for t in row.twins) or "none"
    same = "; ! probably the same concept" if any(t.strong for t in row.twins) else ""
    words = ", ".join(f"{one.word!r} {one.share:.0%}" for one in row.words) or "-"
    return found | {
        "twins": f"{twins} (correlation with features of other partitions{same})",
        "sources": sources(row, 6),
        "words": f"{words} (of its top examples)",
    }


def sources(row: FeatureRow, most: int) -> str:
    """Those in which most of its activation is."""
    return ", ".join(f"{label} {share:.0%}" for label, share in list(row.sources.items())[:most]) or "(no texts)"
