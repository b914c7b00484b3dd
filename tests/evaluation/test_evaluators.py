"""What every metric has in common."""

import numpy as np
import pytest

from benchmark.evaluation.loop import EVALUATORS


@pytest.mark.parametrize("name", EVALUATORS)
class TestWhatIsNotAPairOfLabelMapsIsRefused:
    @pytest.mark.parametrize(("prediction", "label"), [(7, 0), (0, 7), (255, 0), (-1, 0)])
    def test_values_that_are_no_class(self, name, prediction, label):
        prediction, label = (np.full((20, 30), value) for value in (prediction, label))
        with pytest.raises(ValueError, match="lies outside the 3 classes"):
            EVALUATORS[name]("abc").add(prediction=prediction, reference=label)

    @pytest.mark.parametrize("shape", [(1, 4), (4, 1), (3, 4, 4), (4, 5), ()])
    def test_shapes_that_differ(self, name, shape):
        with pytest.raises(ValueError, match=r"of one shape \(H, W\), not .*\(4, 4\)"):
            EVALUATORS[name]("abc").add(prediction=np.zeros(shape, int), reference=np.zeros((4, 4), int))

    def test_what_is_predicted_where_nothing_is_labelled_counts_nothing(self, name):
        label = np.full((20, 30), 255)
        label[:10] = 1
        scores = []
        for other in (0, 1, 200):
            metric = EVALUATORS[name]("abc")
            prediction = np.where(label == 255, other, label)
            metric.add(prediction=prediction, reference=label)
            scores.append(metric.compute())
        assert scores[0] == scores[1] == scores[2]
