"""What the checks of exported children have in common: running offshoot, choosing children, and our own features."""

import contextlib
import json
import pathlib
import subprocess
import tempfile

from safetensors.numpy import load_file, save_file

from opened import Difference

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise Difference(f"{pathlib.Path(command[0]).name} failed:\n{done.stderr.strip()}")
    return done.stdout


def family_members(run_folder, wanted):
    """Ids of the children to look at: those asked for, or the smallest, the middle and the largest by parameters."""
    children = json.loads((run_folder / "catalog.json").read_text())["children"]
    ids = [child["id"] for child in sorted(children, key=lambda child: child["parameters"])]
    if wanted:
        return [child for child in wanted if child in ids]
    return list(dict.fromkeys([ids[0], ids[len(ids) // 2], ids[-1]]))


def export(arguments, run_folder, child, target, layout="hf"):
    """One child of a run as a folder."""
    run(arguments.bin / "offshoot", "export", run_folder, "--child", child, "--format", layout, "-o", target)


def folders(arguments, scratch):
    """Every Hugging Face folder to check, with a label: those that are named, and some children of the runs that are."""
    for number, path in enumerate(arguments.path):
        if (path / "catalog.json").is_file():
            for child in family_members(path, arguments.child):
                target = scratch / str(number) / child
                export(arguments, path, child, target)
                yield f"{path} {child}", target
        else:
            yield str(path), path


def our_features(arguments, folder, images, scratch, name=None):
    """cls, patches, and logits of a classifier, by the program under test, as arrays; `name` is timm's for a file of timm."""
    save_file({"images": images}, scratch / "images.safetensors")
    output = scratch / "features.safetensors"
    run(arguments.bin / "examples" / "features", folder, scratch / "images.safetensors", output, *([name] if name else []))
    return load_file(output)


def run_card(folder, known=()):
    """Runs the lines of Python in the model card of an exported child as they stand, with the names `known`; the names afterwards.

    None if the folder has no card of ours. The lines call the folder by the child's id, which is the card's title, or stand in it.
    """
    card = folder / "README.md"
    if not card.is_file() or "\n- offshoot\n" not in card.read_text():
        return None
    text = card.read_text()
    code = text.split("```python\n")[1].split("```")[0]
    title = next(line for line in text.splitlines() if line.startswith("# "))
    names = dict(known)
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        for entry in folder.resolve().iterdir():
            (place / entry.name).symlink_to(entry)
        (place / title.split()[1]).symlink_to(folder.resolve(), target_is_directory=True)
        with contextlib.chdir(place):
            exec(code, names)
    return names
