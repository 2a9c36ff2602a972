"""The tutorial of the system that esmtune replaces, in our words: learn the length of ten proteins.

python examples/length.py FOLDER

Every number of the tutorial stands below. Its encoder starts from random weights, so what comes
out says that training, saving and predicting work, and nothing about proteins.
"""

import sys

import esmtune

SEQUENCES = [
    "TLILGWSDKLGSLLNQLAIANESLGGGTIAVMAERDKEDMELDIGKMEFDFKGTSVI",
    "LYSGDHSTQGARFLRDLAENTGRAEYELLSLF",
    "GRFNVWLGGNESKIRQVLKAVKEIGVSPTLFAVYEKN",
    "DELTALGGLLHDIGKPVQRAGLYSGDHSTQGARFLRDLAENTGRAEYELLSLF",
    "KLGSLLNQLAIANESLGGGTIAVMAERDKEDMELDIGKMEFDFKGTSVI",
    "LFGAIGNAISAIHGQSAVEELVDAFVGGARISSAFPYSGDTYYLPKP",
    "LGGLLHDIGKPVQRAGLYSGDHSTQGARFLRDLAENTGRAEYELLSLF",
    "ISAIHGQSAVEELVDAFVGGARISSAFPYSGDTYYLPKP",
    "SGSKASSDSQDANQCCTSCEDNAPATSYCVECSEPLCETCVEAHQRVKYTKDHTVRSTGPAKT",
    "MVLSPADKTNVKAAWGKVGAHAGEYGAEALERH",
]


def main(folder: str) -> None:
    """Train on the ten, then load what was saved and predict them."""
    run = esmtune.train(
        [(sequence, len(sequence) / 100) for sequence in SEQUENCES],
        out=folder,
        encoder="random:esm2_t6_8M_UR50D",
        tuning="frozen",
        head={"name": "mlp", "hidden": 256, "dropout": 0.25},
        max_steps=50,
        global_batch_size=8,
        micro_batch_size=4,
        valid_fraction=0,
        test_fraction=0,
    )
    print(*run.notices, sep="\n")
    predictor = esmtune.load(folder)
    print("length  target  prediction")
    for sequence, prediction in zip(SEQUENCES, predictor.predict(SEQUENCES), strict=True):
        print(f"{len(sequence):6}  {len(sequence) / 100:6.2f}  {prediction:10.3f}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
