"""What a benchmark was run on."""

import platform

from esmtune.devices import processor_says


def processor() -> str:
    """What the processor calls itself."""
    return processor_says("model name") or platform.processor()
