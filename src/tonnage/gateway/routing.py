"""Which engine answers for which model. A value, checked when it is built; no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tonnage.errors import InvalidComposition
from tonnage.gateway.engines.engine import Engine
from tonnage.gateway.refusal import Refusal


@dataclass(frozen=True, kw_only=True)
class Route:
    """Where a request goes.

    Args:
        engine: what answers it.
        model: the name that the engine knows the model by.
    """

    engine: Engine
    model: str


class Routes:
    """The models of a gateway.

    Args:
        engines: at least one; no two with the same name, or for the same model.
        aliases: further name -> model.

    Raises:
        InvalidComposition: the engines and aliases do not go together.
    """

    def __init__(self, engines: Sequence[Engine], aliases: Mapping[str, str]) -> None:
        if not engines:
            raise InvalidComposition("the gateway has no engine", hint="add with_engine(...)")
        self.engines = tuple(engines)
        self._routes: dict[str, Route] = {}
        names: set[str] = set()
        for engine in engines:
            if engine.name in names:
                raise InvalidComposition(f"two engines are named {engine.name!r}", hint="give one another name")
            names.add(engine.name)
            self._add(engine)
        for alias, model in aliases.items():
            self._alias(alias, model)

    @property
    def models(self) -> list[str]:
        """Every name that a client may ask for, aliases after the models."""
        return list(self._routes)

    def find(self, model: str) -> Route:
        """Where requests for `model` go.

        Raises:
            Refusal: 404, no engine has it.
        """
        route = self._routes.get(model)
        if route is None:
            raise Refusal(
                404,
                f"The model '{model[:200]}' does not exist; this server has {', '.join(self.models)[:1000]}.",
                param="model",
                code="model_not_found",
            )
        return route

    def _add(self, engine: Engine) -> None:
        if not engine.models:
            raise InvalidComposition(f"engine {engine.name} serves no model", hint="name at least one")
        for model in engine.models:
            if not model:
                raise InvalidComposition(f"engine {engine.name} serves a model without a name")
            if model in self._routes:
                other = self._routes[model].engine.name
                raise InvalidComposition(
                    f"engines {other} and {engine.name} both claim the model {model!r}",
                    hint="give one of them another model name",
                )
            self._routes[model] = Route(engine=engine, model=model)

    def _alias(self, alias: str, model: str) -> None:
        if not alias or alias in self._routes:
            raise InvalidComposition(f"the alias {alias!r} is empty or already the name of a model")
        target = self._routes.get(model)
        if target is None or target.model != model:
            raise InvalidComposition(
                f"the alias {alias!r} names {model!r}, which no engine serves",
                hint=f"the models are {', '.join(name for name, route in self._routes.items() if name == route.model)}",
            )
        self._routes[alias] = target
