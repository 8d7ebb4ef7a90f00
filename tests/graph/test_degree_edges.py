from sgquant_optuna.graph.degree_edges import bucket_labels


def test_labels_tell_the_degrees():
    assert bucket_labels((4, 5, 8)) == ["0-3", "4", "5-7", "8+"]
    assert bucket_labels(()) == ["0+"]
