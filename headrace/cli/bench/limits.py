"""What ``headrace bench serve`` judges a server by: the device named on the command line, or the one it tells of."""

import argparse
from typing import TYPE_CHECKING, Any

import httpx

from headrace import remote
from headrace.cli.parser import FlagParser, add_option, given_options
from headrace.config import OPTIONS, Config, listed
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.bench.devices import Device
    from headrace.bench.roofline import Setting, Speed

FACTS = "/dashboard/facts"  # of a server of Headrace
ASKED = ("tensor_parallel_size", "quantization", "kv_cache_dtype", "dtype")
LOCAL = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: FlagParser) -> None:
    section = parser.add_argument_group("the server's device, by whose limits it is judged")
    section.add_argument("--device", metavar="NAME", help="h200, l40s, … or cpu for this machine's. [the server's own]")
    section.add_argument("--device-spec", metavar="FILE", help="JSON or YAML file that describes another device.")
    for name in ASKED:
        add_option(section, OPTIONS[name])
    parser.set_defaults(model_argument=None)  # which is where else options come from


def speed_of(arguments: argparse.Namespace, model: str, server: httpx.Client) -> "Speed | str":
    """How fast the server's device lets ``model`` be; or in a sentence, why that isn't known.

    Raises ConfigError if the command line names a device or model that can't be planned for.
    """
    name, spec, options = arguments.device, arguments.device_spec, given_options(arguments)
    if name and spec:
        raise ConfigError("--device and --device-spec both name the server's device: leave one out.")
    if name or spec:
        from headrace.bench import devices, roofline

        device = devices.device_called(name) if name else devices.device_in(spec)
        return roofline.speed_of(setting(arguments, model, device, options))
    if options:
        flags = listed(OPTIONS[option].flag for option in options)
        raise ConfigError(f"{flags} without --device: name the device whose limits the server is judged by.")
    facts = remote.json_of(server, FACTS)
    try:
        told, dtype = str(facts["device"]), facts["dtype"]
    except (TypeError, KeyError):
        return (
            "How near that is to the device's limits isn't known, as the server doesn't tell its device: add --device."
        )
    from headrace.bench import devices, roofline

    here = told.startswith("CPU") and server.base_url.host in LOCAL
    own = devices.this_cpu() if here else devices.device_reported(told)
    if own is None:
        return f"The limits of the server's device, {told}, aren't known: --device-spec can describe it."
    try:
        return roofline.speed_of(setting(arguments, model, own, {"dtype": dtype}))
    except ConfigError as error:
        return f"How near that is to the device's limits isn't known: {error}"


def setting(arguments: argparse.Namespace, model: str, device: "Device", options: dict[str, Any]) -> "Setting":
    from headrace.bench.roofline import Setting

    options = options | {"model": model, "load_format": "dummy", "trust_remote_code": arguments.trust_remote_code}
    return Setting(Config.planned(**options), device)
