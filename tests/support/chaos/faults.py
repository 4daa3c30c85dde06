"""What happens to servers and connections during a run. The functions on servers block."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import redis

from tests.support.groups import Cluster, Member, SentinelGroup
from tests.support.proxy import Action, Command, Fault

Site: TypeAlias = Cluster | SentinelGroup | Member
"""The servers of a run: a group, or one server that keeps its data."""
Damage: TypeAlias = Callable[[Site, random.Random], None]

RATES = {
    Action.CUT_BEFORE: 0.002,
    Action.HALF_REQUEST: 0.002,
    Action.DROP_REPLY: 0.003,
    Action.HALF_REPLY: 0.002,
}
"""The part of all commands whose connection a proxy cuts, by the moment of the cut."""
DELAYED = 0.03
"""The part of all commands whose reply a proxy delays."""
FROZEN = 0.0005
"""The part of all commands after whose reply a proxy delivers nothing for longer than clients wait."""


@dataclass
class Interference:
    """What the proxies do to the connections. `is_on` is False before and after a run."""

    is_on: bool = False

    def of_proxy(self, dice: random.Random) -> Callable[[Command], Action | Fault]:
        def choose(_: Command) -> Action | Fault:
            if not self.is_on:
                return Action.PASS
            fate, part = dice.random(), dice.random()
            for action, rate in RATES.items():
                if fate < rate:
                    return Fault(action, seconds=0.0, part=part)
                fate -= rate
            if fate < DELAYED:
                return Fault(Action.HOLD_REPLY, seconds=part * 0.05)
            if fate < DELAYED + FROZEN:
                return Fault(Action.HOLD_REPLY, seconds=1.0 + part * 3.0)
            return Action.PASS

        return choose


# Groups


def _primary(site: Site, dice: random.Random) -> Member:
    if isinstance(site, Cluster):
        return dice.choice(sorted(site.primaries(), key=lambda node: node.port))
    return site.primary if isinstance(site, SentinelGroup) else site


def _replica(site: Site, dice: random.Random) -> Member:
    if isinstance(site, Cluster):
        return site.replica_of(_primary(site, dice))
    assert isinstance(site, SentinelGroup)
    return dice.choice(sorted(site.replicas(), key=lambda node: node.port))


def _replaced(site: Site, old: Member) -> None:
    """Wait until another primary has replaced `old`, and heal the group."""
    assert not isinstance(site, Member)
    site.wait_for_failover(old)
    if isinstance(site, SentinelGroup):
        site.wait_until_followed()
    site.heal()


def kill_primary(site: Site, dice: random.Random) -> None:
    """Kill a primary. It restarts as an empty replica when another one is promoted."""
    primary = _primary(site, dice)
    primary.kill()
    _replaced(site, primary)


def replace_frozen_primary(site: Site, dice: random.Random) -> None:
    """Freeze a primary until another one is promoted. It then continues as a stale primary until it is demoted."""
    primary = _primary(site, dice)
    primary.freeze()
    _replaced(site, primary)


def promote(site: Site, dice: random.Random) -> None:
    """Promote a replica while the primary works. On a busy machine, sentinels give up such a failover at times."""
    primary = _primary(site, dice)
    if isinstance(site, Cluster):
        site.replica_of(primary).ask("CLUSTER", "FAILOVER")
    else:
        assert isinstance(site, SentinelGroup)
        site.sentinels[0].ask("SENTINEL", "FAILOVER", site.SERVICE)
    try:
        _replaced(site, primary)
    except AssertionError:
        site.heal()


def kill_replica(site: Site, dice: random.Random) -> None:
    assert not isinstance(site, Member)
    _replica(site, dice).kill()
    time.sleep(dice.random())
    site.heal()


def freeze_replica(site: Site, dice: random.Random) -> None:
    assert not isinstance(site, Member)
    replica = _replica(site, dice)
    replica.freeze()
    time.sleep(2 * dice.random())
    site.heal()


# Every site


def freeze_briefly(site: Site, dice: random.Random) -> None:
    """Freeze a primary for less than the time after which it is replaced."""
    primary = _primary(site, dice)
    primary.freeze()
    time.sleep(0.1 + 0.5 * dice.random())
    primary.thaw()
    if not isinstance(site, Member):
        site.wait_until_ok()


def flush_scripts(site: Site, dice: random.Random) -> None:
    _primary(site, dice).ask("SCRIPT", "FLUSH")


# One server


def restart(site: Site, dice: random.Random) -> None:
    """Kill the server, and start it again with its data."""
    assert isinstance(site, Member)
    site.kill()
    time.sleep(dice.random())
    site.start()


def freeze(site: Site, dice: random.Random) -> None:
    """Freeze the server for longer than clients wait for a reply."""
    assert isinstance(site, Member)
    site.freeze()
    time.sleep(1.0 + 3.0 * dice.random())
    site.thaw()


IN_A_GROUP: Mapping[Damage, int] = {
    kill_primary: 4, replace_frozen_primary: 4, promote: 3, kill_replica: 1, freeze_replica: 1, freeze_briefly: 2,
    flush_scripts: 1,
}  # fmt: skip
"""The faults of the servers of a group, and how often each occurs."""
OF_ONE_SERVER: Mapping[Damage, int] = {restart: 4, freeze: 3, freeze_briefly: 2, flush_scripts: 1}


def next_damage(site: Site, dice: random.Random) -> Damage:
    damages = OF_ONE_SERVER if isinstance(site, Member) else IN_A_GROUP
    (damage,) = dice.choices(list(damages), list(damages.values()))
    return damage


def is_refusal(error: redis.RedisError) -> bool:
    """Whether a server refused to fail over at this moment, because another failover has just ended."""
    return any(word in str(error) for word in ("INPROG", "NOGOODSLAVE", "FAILOVER"))
