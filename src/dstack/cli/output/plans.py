"""Plans: what would be made, out of which offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dstack.cli.output.tables import print_properties, print_table
from dstack.cli.output.values import (
    format_backend,
    format_price,
    format_requirements,
    format_resources,
)

Document = Mapping[str, Any]


def print_run_plan(plan: Document, *, max_offers: int, verbose: bool) -> None:
    """Prints the properties of the run and the best offers."""
    spec = plan["effective_run_spec"] or plan["run_spec"]
    print_properties(run_properties(plan, spec, verbose=verbose))
    print()
    job_plan = plan["job_plans"][0]
    print_offers(job_plan["offers"][:max_offers], total=job_plan["total_offers"])


def run_properties(plan: Document, spec: Document, *, verbose: bool) -> list[tuple[str, str]]:
    """Names and values; those at their defaults only with `verbose`."""
    configuration, profile = spec["configuration"], spec["profile"] or {}
    requirements = plan["job_plans"][0]["job_spec"]["requirements"]

    def param(name: str) -> Any:
        return configuration.get(name) if configuration.get(name) is not None else profile.get(name)

    shown = [
        ("Project", plan["project_name"]),
        ("User", plan["user"]),
        ("Type", configuration["type"]),
        ("Resources", format_requirements(requirements["resources"])),
        ("Spot policy", param("spot_policy") or "on-demand"),
        ("Max price", format_price(requirements.get("max_price")) or "off"),
    ]
    optional = [
        ("Fleets", ", ".join(_format_reference(fleet) for fleet in param("fleets") or [])),
        ("Backends", ", ".join(param("backends") or [])),
        ("Regions", ", ".join(param("regions") or [])),
        ("Instance types", ", ".join(param("instance_types") or [])),
        ("Reservation", requirements.get("reservation") or ""),
        ("Nodes", str(configuration["nodes"]) if (configuration.get("nodes") or 1) > 1 else ""),
        ("Max duration", _format_duration(param("max_duration"))),
        ("Idle duration", _format_duration(param("idle_duration"))),
        ("Retry policy", _format_retry(param("retry"))),
        ("Creation policy", param("creation_policy") or ""),
    ]
    return shown + [(name, value or "-") for name, value in optional if value or verbose]


def print_offers(offers: Sequence[Document], *, total: int) -> None:
    """Prints the offers, and how many more there are."""
    if not offers:
        print("No offers: nothing that this project can use has these resources now.")
        return
    headers = ["#", "BACKEND", "RESOURCES", "INSTANCE TYPE", "PRICE", ""]
    rows = [[str(number), *_offer_cells(offer)] for number, offer in enumerate(offers, start=1)]
    print_table(headers, rows, keep=("#", "PRICE"))
    if total > len(offers):
        prices = [offer["price"] for offer in offers]
        print(f"Shown {len(offers)} of {total} offers, {format_price(min(prices))} and up.")


def _offer_cells(offer: Document) -> list[str]:
    resources = offer["instance"]["resources"]
    spot = " (spot)" if resources["spot"] else ""
    availability = str(offer["availability"])
    return [
        format_backend(offer["backend"], offer["region"]),
        format_resources(resources) + spot,
        offer["instance"]["name"],
        format_price(offer["price"]),
        "" if availability in ("available", "unknown") else availability.replace("_", " "),
    ]


def _format_reference(reference: Document | str) -> str:
    if isinstance(reference, str):
        return reference
    return f"{reference['project']}/{reference['name']}" if reference.get("project") else str(reference["name"])


def _format_duration(value: Any) -> str:
    if value is None:
        return ""
    return "off" if value in ("off", -1) else f"{value}s" if isinstance(value, int) else str(value)


def _format_retry(retry: Any) -> str:
    if not retry:
        return ""
    if retry is True:
        return "any event, 1h"
    events = ", ".join(retry.get("on_events") or ["any event"])
    return f"{events}, {_format_duration(retry.get('duration') or 3600)}"


def print_changes(title: str, old: Document, new: Document, fields: Sequence[str]) -> None:
    """Prints what would change, field by field."""
    print(title)
    for field in fields:
        print(f"  {field.removeprefix('configuration.')}: {_show(old, field)} -> {_show(new, field)}")


def _show(document: Document, field: str) -> str:
    value: Any = document
    for part in field.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:59] + "…"
