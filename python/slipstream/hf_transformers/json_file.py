"""JSON files of a checkpoint folder, read with a bound on their size."""

import json
import stat
from pathlib import Path
from typing import Any

MAX_CONFIG_BYTES = 2**20  # params.json and config.json are a few kB
MAX_INDEX_BYTES = 64 * 2**20  # an index names every tensor: about 5 MB for the largest mixture-of-experts models


def read_json_object(path: Path, max_bytes: int, problems: list[str]) -> dict[str, Any] | None:
    """The object in `path`, or None after adding one sentence to `problems` that says what is wrong with the file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device would never end
            problems.append(f"{path.name} is not a file")
            return None
        if status.st_size > max_bytes:
            problems.append(f"{path.name} has {status.st_size} bytes; a file of this kind has at most {max_bytes}")
            return None
        value = json.loads(path.read_bytes())
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
    except RecursionError:
        problems.append(f"{path.name} is nested too deeply to be a configuration")
    except ValueError as error:
        problems.append(f"{path.name} is not valid JSON: {error}")
    else:
        if isinstance(value, dict):
            return value
        problems.append(f"{path.name} holds a JSON {type(value).__name__}, not an object")
    return None
