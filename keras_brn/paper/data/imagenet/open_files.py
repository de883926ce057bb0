"""The system's limit for open files, which is below what ImageNet needs on most machines."""

_OF_OTHERS = 128  # Of the interpreter, of TensorFlow's libraries and of logs, at least.


def allow_open_files(count):
    """Raises the limit of this process for open files, where that is needed.

    Args:
        count: Number of files that are to stay open.

    Raises:
        RuntimeError: If the system does not allow so many.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit.
        return
    needed = count + _OF_OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise RuntimeError(
            f"ImageNet is read from {count} files, which stay open, and {_OF_OTHERS} more are for "
            "the program: the system must allow so many open files. Raise the hard limit: "
            "`ulimit -Hn 4096` as root, LimitNOFILE=4096 of a systemd service, or `--ulimit "
            f"nofile=4096` of docker. Received: a hard limit of {hard}"
        )
    plenty = max(needed, 4 * count)  # Also for what is opened later.
    limit = plenty if hard == resource.RLIM_INFINITY else min(plenty, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
