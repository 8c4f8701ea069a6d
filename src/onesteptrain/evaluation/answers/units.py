"""Numbers with a unit: 12 cm^2, $5, 25 °C, 8 red apples."""

from __future__ import annotations

import re

NUMBER = (
    r"[-+]?\s*(?:\d+\s+\d+\s*/\s*\d+|\d+\s*/\s*-?\d+|\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+"
    r"|\d*\\[dt]?frac\s*\{-?\d+\}\s*\{-?\d+\})"
)
"""Pattern of a number as it is written."""

_VALUE_AND_UNIT = re.compile(rf"(?P<value>{NUMBER})(?P<space>\s*)(?P<unit>[^\d\s.,;:=+*/()\[\]{{}}$\\^_<>-].*)?")
_UNIT_IN_BRACKETS = re.compile(rf"(?P<value>{NUMBER})\s*\((?P<unit>[^()\d]+[\d²³^]*)\)")
_MONEY = re.compile(
    rf"(-?)\s*(US\$|\\?\$|[€£¥₹]|(?:USD|EUR|GBP|INR|JPY|CNY|Rs)\b\.?)\s*(?P<value>{NUMBER})", re.IGNORECASE
)
_MONEY_LAST = re.compile(rf"(?P<value>{NUMBER})\s*(\\?\$|[€£¥₹])")
_NAMES = """
    mm millimeter millimetre; cm centimeter centimetre; dm decimeter decimetre; m meter metre; km kilometer kilometre;
    in inch inche; mi mile; ft foot feet; yd yard; g gram; kg kilogram kilo; mg milligram; t ton tonne; lb pound;
    oz ounce; l liter litre; ml milliliter millilitre; s sec second; min minute; h hr hour; ms millisecond; day; week;
    month; year; ° degree deg; °c celsius degreecelsius degreescelsius degreec degreesc; °f fahrenheit degreefahrenheit
    degreesfahrenheit degreef degreesf; rad radian; n newton; j joule; kj kilojoule; w watt; kw kilowatt; v volt; ω ohm;
    a ampere amp; hz hertz; k kelvin; pa pascal; kpa kilopascal; mol mole; mph; usd dollar us$ $; cent ¢; eur euro €;
    gbp £; inr rs rupee ₹; jpy yen ¥; cny yuan;
    am a.m; pm p.m
"""
_UNITS = {spelling: names.split()[0] for names in _NAMES.split(";") for spelling in names.split()}
_HEDGE = re.compile(
    r"\b(?:or|and|not|either|neither|to|if|unless|is|are|was|plus|minus|times(?!\s*$|\s+(?:as|more|larger|greater|bigger|longer|the)\b)|divided|over|squared|cubed|factorial|choose"
    r"|mod|point|half|than|percent|out|wrong|incorrect|dozen|hundred|thousand|million|billion|but|wait|actually)\b"
    r"|\([A-J]\)"
)


def split_unit(text: str) -> tuple[str, str | None]:
    """A number without its unit, and the measuring unit by its short name; other texts as they are."""
    if (match := _MONEY.fullmatch(text)) is not None:
        return match[1] + match["value"], _UNITS[match[2].lower().strip("\\.")]
    if (match := _MONEY_LAST.fullmatch(text)) is not None:
        return match["value"], _UNITS[match[2].strip("\\")]
    if (match := _UNIT_IN_BRACKETS.fullmatch(text)) is not None and (unit := measuring_unit(match["unit"])):
        return match["value"], unit
    match = _VALUE_AND_UNIT.fullmatch(text)
    if re.fullmatch(r"[12]\d\d0s", text) or match is None or not match["unit"] or match["unit"].startswith("%"):
        return text, None
    known = measuring_unit(match["unit"])
    if known is not None:
        return match["value"], known
    if _HEDGE.search(match["unit"]):
        return text, None
    if not (match["space"] and re.match(r"(?!pi\b|sqrt|sin|cos|tan|log|ln\b)[A-Za-z]{2,}[^\d=]*$", match["unit"])):
        return text, None  # as likely a variable: 5x, 2ab
    return match["value"], _first_unit(match["unit"])


def measuring_unit(text: str) -> str | None:
    """The short name of a unit such as "square centimeters" or "km per hour"; nothing for other words."""
    text = re.sub(r"\s+per\s+", "/", text.strip().lower())
    text = re.sub(
        r"\b(square|sq\.?|cubic)\s+(\w+)", lambda match: match[2] + ("3" if match[1] == "cubic" else "2"), text
    )
    text = re.sub(r"\s+(squared|cubed)\b", lambda match: "2" if match[1] == "squared" else "3", text)
    parts = [_simple_unit(part) for part in text.split("/")]
    return "/".join(part for part in parts if part) if all(parts) else None


def _first_unit(text: str) -> str | None:
    """The unit at the front of "cm long" or "dollars each"."""
    first, _, rest = text.partition(" ")
    return measuring_unit(first) if rest else None


def _simple_unit(text: str) -> str | None:
    unit = re.sub(r"[\s^{}]", "", text).strip(".")
    name, power = re.fullmatch(r"(.*?)([23²³]?)", unit, re.DOTALL).groups()  # type: ignore[union-attr]  # matches any text
    known = _UNITS.get(name) or _UNITS.get(name.removesuffix("s"))
    return known and known + power.translate({ord("²"): "2", ord("³"): "3"})
