"""One writer for a folder."""

import errno
import fcntl
import sys
from pathlib import Path


def lock_for(folder: Path, handle: int) -> bool:
    """Lock an open file of a folder for this process alone; False where another one has it.

    Some network file systems have no locks. That is said, and work goes on.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        said = f"files cannot be locked there ({error.strerror}), so see to it that nothing else writes to {folder}"
        sys.stderr.write(f"mlm: {said}\n")
    return True
