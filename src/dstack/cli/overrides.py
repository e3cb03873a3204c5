"""Flags that override fields of a configuration, shared by `apply` and `offer`."""

from __future__ import annotations

import argparse
import os
from typing import Any

from dstack.cli.errors import CliError


def add_resource_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags about resources."""
    group = parser.add_argument_group("Resources")
    for name, example in (("cpu", "4.."), ("gpu", "H100:80GB:8"), ("memory", "32GB.."), ("disk", "200GB..")):
        group.add_argument(f"--{name}", metavar="SPEC", help=f"Such as {example}")


def add_offer_arguments(parser: argparse.ArgumentParser, *, max_offers: int) -> None:
    """Adds the flags about which offers are shown."""
    parser.add_argument(
        "--max-offers", type=int, metavar="N", default=max_offers, help=f"Show at most N (default: {max_offers})"
    )
    parser.add_argument("--full-offers", action="store_true", help="Do not cut offers to the requested size")
    parser.add_argument("--unallocated", action="store_true", help="Subtract what is in use")


def add_profile_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags about how and where to run."""
    group = parser.add_argument_group("Profile")
    which = group.add_mutually_exclusive_group()
    which.add_argument("--profile", metavar="NAME", help="The profile (default: $DSTACK_PROFILE, then the file's)")
    which.add_argument("--no-profile", action="store_true", help="Use no profile")
    group.add_argument("--max-price", type=float, metavar="PRICE", help="Dollars an hour, at most")
    group.add_argument("--max-duration", metavar="DURATION", help="Such as 2h, or off")
    group.add_argument("-b", "--backend", action="append", dest="backends", metavar="NAME", help="Repeatable")
    group.add_argument("-r", "--region", action="append", dest="regions", metavar="NAME", help="Repeatable")
    group.add_argument(
        "--instance-type", action="append", dest="instance_types", metavar="NAME", help="Repeatable"
    )
    group.add_argument("--fleet", action="append", dest="fleets", metavar="NAME", help="Repeatable")
    _add_creation_arguments(group.add_mutually_exclusive_group())
    _add_spot_arguments(group.add_mutually_exclusive_group())
    _add_retry_arguments(group.add_mutually_exclusive_group())


def _add_creation_arguments(group: Any) -> None:
    group.add_argument("-R", "--reuse", action="store_true", help="Create no instance")
    group.add_argument("--dont-destroy", action="store_true", help="Keep the instance when it is idle")
    group.add_argument("--idle-duration", metavar="DURATION", help="Keep an idle instance this long")


def _add_spot_arguments(group: Any) -> None:
    policies = (("--spot", "spot"), ("--on-demand", "on-demand"), ("--spot-auto", "auto"))
    for flag, policy in policies:
        group.add_argument(
            flag, action="store_const", const=policy, dest="spot_policy", help=f"Same as --spot-policy {policy}"
        )
    group.add_argument("--spot-policy", choices=[policy for _, policy in policies], help="Which kind of instance")


def _add_retry_arguments(group: Any) -> None:
    group.add_argument("--retry", action="store_true", help="Retry for an hour")
    group.add_argument("--no-retry", action="store_true", help="Do not retry")
    group.add_argument("--retry-duration", metavar="DURATION", help="Retry for this long")


def profile_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The fields that the flags about how and where to run set."""
    names = ("max_price", "max_duration", "backends", "regions", "instance_types", "fleets", "spot_policy")
    fields: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.reuse:
        fields["creation_policy"] = "reuse"
    if args.dont_destroy or args.idle_duration is not None:
        fields["idle_duration"] = "off" if args.dont_destroy else args.idle_duration
    if args.retry or args.no_retry:
        fields["retry"] = bool(args.retry)
    if args.retry_duration is not None:
        fields["retry"] = {"duration": args.retry_duration}
    return fields


def resource_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `resources` that the flags set."""
    return {name: value for name in ("cpu", "gpu", "memory", "disk") if (value := getattr(args, name)) is not None}


def chosen_profile(args: argparse.Namespace) -> str | bool | None:
    """The name of the profile to use; None for the default one, False for none."""
    if args.profile is not None:
        return str(args.profile)
    if args.no_profile or _is_on("DSTACK_NO_PROFILE"):
        return False
    return os.environ.get("DSTACK_PROFILE") or None


def _is_on(variable: str) -> bool:
    text = os.environ.get(variable, "0").strip().lower()
    if text in ("1", "true", "on", "yes"):
        return True
    if text in ("0", "false", "off", "no", ""):
        return False
    raise CliError(f"{variable} is {text!r}; it must be one of 0, 1, true, false, on, off")
