"""Downloads from the Hugging Face hub: the files of one revision that are needed, and no others.

Leaves transport, cache, tokens and progress bars to ``huggingface_hub``; doesn't know what is in the files.
"""

import glob
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from headrace.errors import ConfigError

logger = logging.getLogger(__name__)


def download(
    repository: str, choose: Callable[[list[str]], list[str]], revision: str | None, token: str | None, root: str | None
) -> Path:
    """The local directory of ``repository`` at ``revision``, with the files that ``choose`` picks from all names.

    ``root`` replaces the hub's cache directory. Where the hub can't be reached, what is in the cache is used.
    Raises ``ConfigError`` if there is no such repository or revision, or access to it, or neither hub nor cache.
    """
    from huggingface_hub import HfApi, errors, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    at = f"{repository} at revision {revision}" if revision else repository
    try:
        siblings = HfApi(token=token).model_info(repository, revision=revision).siblings or []
        names = choose([sibling.rfilename for sibling in siblings])
        patterns = [glob.escape(name) for name in names]
        found = snapshot_download(repository, revision=revision, token=token, cache_dir=root, allow_patterns=patterns)
        return Path(found)
    except ConfigError:
        raise
    except errors.HFValidationError as error:
        raise ConfigError(f"{repository!r} is neither a file nor a directory here, nor a valid hub id.") from error
    except errors.GatedRepoError as error:
        raise ConfigError(
            f"Access to {repository} must be granted on the hub first; then give a token with --hf-token or HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"{repository} has no revision {revision!r} on the hub.") from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigError(
            f"{repository!r} is no directory here, and the hub has no such model (or it is private: give a token with "
            "--hf-token or HF_TOKEN)."
        ) from error
    except Exception as error:  # which ones the HTTP client raises depends on huggingface_hub's version
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    try:  # asking for no file at all, as the cache needn't hold those that were never wanted
        found = snapshot_download(
            repository, revision=revision, cache_dir=root, local_files_only=True, allow_patterns=[]
        )
    except Exception as error:
        raise ConfigError(
            f"{at} is no directory here and not in the cache, and can't be downloaded from the hub ({reason}); "
            "check the connection, or give the directory of a model that you have."
        ) from error
    logger.warning("Nothing can be had from the hub (%s); using the cached files of %s.", reason, at)
    return Path(found)
