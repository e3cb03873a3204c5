"""What is done about a machine of a gateway. All idempotent."""

from __future__ import annotations

from collections.abc import Mapping

from dstack.core.errors import HostKeyChanged, HostUnfit, LoginRefused
from dstack.server.orchestrator.decision import Effect, EffectHandler, Facts, Key, TerminalEffectError
from dstack.server.orchestrator.gateway_replicas.rules import Install, Uninstall
from dstack.server.orchestrator.world import World


async def install(effect: Install, world: World, key: Key) -> Facts:
    """Somebody has to do something about a machine that is unfit; one that cannot be reached may be later."""
    try:
        return {"installed_version": await world.gateway_hosts.install(key.id)}
    except (HostUnfit, LoginRefused, HostKeyChanged) as error:
        raise TerminalEffectError(str(error), {"failure": str(error)}) from error


async def uninstall(effect: Uninstall, world: World, key: Key) -> Facts:
    """The machine is as it was before, but for the packages of the system."""
    await world.gateway_hosts.uninstall(key.id)
    return {"is_gone": True}


HANDLERS: Mapping[type[Effect], EffectHandler] = {Install: install, Uninstall: uninstall}
