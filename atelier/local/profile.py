"""How the command line finds the services that `atelier up` runs: a small file in the user's home.

The file holds a token, so only its owner can read it. Environment variables go before it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

KEYS = ("registry", "trainer", "inference", "token")


def profile_path() -> Path:
    """$ATELIER_PROFILE, or `.atelier/profile.json` in the home directory."""
    return Path(os.environ.get("ATELIER_PROFILE") or Path.home() / ".atelier" / "profile.json")


def load_profile() -> dict[str, str] | None:
    """Addresses by service, and the token; None when nothing runs here."""
    try:
        profile = json.loads(profile_path().read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return {key: profile[key] for key in KEYS} if all(key in profile for key in KEYS) else None


def save_profile(profile: Mapping[str, str]) -> None:
    """Writes the file for other commands of this user."""
    path = profile_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600)
    path.write_text(json.dumps({key: profile[key] for key in KEYS}, indent=2))


def remove_profile() -> None:
    """Removes the file, if it is there."""
    profile_path().unlink(missing_ok=True)
