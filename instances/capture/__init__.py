"""Capture: run a Hugging Face mixture-of-experts model and write which experts its tokens used.

Needs the extra ``capture`` (torch and transformers); importing this package does not.
"""

from __future__ import annotations

from wdmoe_opt.instances.capture.command import capture_command
from wdmoe_opt.instances.capture.prompts import read_prompts
from wdmoe_opt.instances.capture.routers import CaptureError, supported_models
from wdmoe_opt.instances.capture.run import capture

__all__ = ["CaptureError", "capture", "capture_command", "read_prompts", "supported_models"]
