from typing import ClassVar

from t2i.evaluation.image_metrics.metric import Scores


class ClipScore:
    better: ClassVar[str] = "higher"
    needs: ClassVar[frozenset] = frozenset()

    def __init__(self, model):
        self.model = model

    def check(self):
        pass

    def __call__(self, judged, device, cache_dir):
        from t2i.tiny.judge import Judge

        j = Judge()
        caps = [p for p in judged.prompts for _ in range(judged.seeds)]
        s = j.score([judged.images[i] for i in range(len(judged.images))], caps).double().numpy()
        return Scores(s.reshape(len(judged.prompts), -1), float(s.mean()), "tiny")
