"""Upload a checkpoint folder to a model hub."""

from pathlib import Path

from pyserini_kd.models.checkpoint_folder import fingerprint, resolve
from pyserini_kd.storage.errors import InputError


def push(name: str | Path, repo: str, *, private: bool = False) -> str:
    """Upload all files of a checkpoint in one commit; returns the address of the repository.

    The repository is created if it is missing. The hub is the one that `HF_ENDPOINT` names. The client takes its token from
    the environment or from its own login.

    Raises:
        InputError: the folder is no checkpoint, the name is no owner/name, or the hub refuses or is not reachable.
    """
    from huggingface_hub import HfApi

    folder, api = resolve(str(name)), HfApi()
    fingerprint(folder)  # raises if there are no weights
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise InputError(f"expected owner/name, found {repo!r}", "push")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload by pyserini-kd export")
    except Exception as error:  # the hub client raises a dozen kinds: offline, no token, no right, bad name
        raise InputError(f"{repo}: the hub did not take the upload ({str(error).splitlines()[0]})", "push") from error
    return f"{api.endpoint}/{repo}"
