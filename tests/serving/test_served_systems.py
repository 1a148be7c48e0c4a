"""The published systems behind the service: answers are those of `zar predict`, and what one cannot do is said."""

from __future__ import annotations

import pytest
import torch

from zar_ray.adaptation.options import PredictConfig
from zar_ray.adaptation.predict import predict
from zar_ray.errors import ConfigError
from zar_ray.models.architecture import build_clip
from zar_ray.models.checkpoints import save_checkpoint
from zar_ray.serving.application import build
from zar_ray.serving.classifier import Classifier
from zar_ray.serving.decoder_deployment import DecoderDeployment
from zar_ray.serving.ingress_deployment import IngressDeployment
from zar_ray.serving.methods import ServiceOptions
from zar_ray.serving.model_deployment import ModelDeployment
from zar_ray.video.options import ViewConfig
from zar_ray.video.transforms import Preprocessing

LABELS = ("riding a horse", "walking the dog", "cooking an egg", "playing chess")
TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
FRAMES = 4
VIEWS = {"frames": FRAMES, "eval_frames": FRAMES, "views_per_rate": 2, "crops": 1}
SYSTEMS = {
    "vificlip": {},
    "vificlip with prompts": {"deep_prompts": {"vectors": 2, "depth": 2}},
    "actionclip": {"fusion": {"head": "Transf", "layers": 1}, "evaluation_scale": 100},
    "ezclip": {"temporal_adapters": {"frames": FRAMES}, "evaluation_scale": 100},
    "a5": {
        "learned_texts": {},
        "frame_layers": {"layers": 1, "frames": FRAMES},
        "evaluation_scale": 1 / 0.07,
    },
    "vitaclip": {"view_prompts": {"frames": FRAMES}},
    "xclip": {"cross_frames": {"frames": FRAMES}},
    "openvclip": {"neighbour_frames": {"frames": FRAMES}},
    "tcclip": {"video_context": {"frames": FRAMES, "context": 3, "seeds": 0.5, "merged": 3}},
}
WITHOUT_CONTEXT = ("a5", "tcclip", "xclip")
OWN_CONTEXT = ("vificlip with prompts", "vitaclip")
WHOLE = ("ezclip", "openvclip", "tcclip", "vitaclip", "xclip")
ANSWERED = [
    (system, method)
    for system in SYSTEMS
    for method in ("zero_shot", "zar")
    if method == "zero_shot" or system not in WITHOUT_CONTEXT
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A file a system, of weights that tell pictures and labels apart."""
    folder, files = tmp_path_factory.mktemp("systems"), {}
    for system, parts in SYSTEMS.items():
        torch.manual_seed(5)
        architecture = {**TINY, **parts}
        clip = build_clip(architecture)
        with torch.no_grad():
            for parameter in clip.parameters():
                if parameter.ndim > 1:
                    parameter.copy_(torch.randn(parameter.shape) * 0.2)
        files[system] = folder / f"{system}.safetensors"
        save_checkpoint(clip, architecture, Preprocessing(32), files[system], {"name": system})
    return files


@pytest.fixture(scope="module")
def of_system(served, checkpoints):
    """A client of each system's service and its backend, made once."""
    made = {}

    def client_of(system):
        if system not in made:
            options = {"model": system.partition(" ")[0], "checkpoint": checkpoints[system], "views": VIEWS}
            made[system] = served(**options)
        return made[system]

    return client_of


@pytest.fixture(scope="module")
def video(make_video, tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("videos") / "one.mp4", frames=30, seed=3)


def ask(client, video, **fields):
    with video.open("rb") as stream:
        data = {"candidate_labels": list(LABELS), **fields}
        return client.post("/v1/classify", files={"video": (video.name, stream)}, data=data)


@pytest.mark.process
@pytest.mark.parametrize(("system", "method"), ANSWERED)
def test_answers_are_those_of_zar_predict(of_system, checkpoints, video, system, method, decoder):
    client, backend = of_system(system)
    answer = ask(client, video, method=method, seed="5", top_k="4").json()
    options = PredictConfig(
        checkpoint=checkpoints[system],
        videos=(str(video),),
        method=(method,),
        seed=5,
        views=ViewConfig(**VIEWS),
        device="cpu",
    )
    (local,) = predict(backend.classifier.model, LABELS, options, decoder)
    for ours, theirs in ((answer["before"], local.before), (answer["after"], local.after)):
        assert [one["label"] for one in ours] == [one.label for one in theirs]
        assert [one["score"] for one in ours] == pytest.approx([one.score for one in theirs], abs=1e-6)
    changed = [one["score"] for one in answer["after"]] != [one["score"] for one in answer["before"]]
    assert (answer["model"]["name"], changed, answer["steps"]) == (system, method == "zar", int(method == "zar"))


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_an_explanation_is_given_or_its_absence_explained(of_system, video, system):
    client, _ = of_system(system)
    answer = ask(client, video, method="zero_shot", explain="true").json()
    assert (answer["explanation"] is None) == bool(answer["explanation_missing"])


@pytest.mark.parametrize("system", WITHOUT_CONTEXT)
def test_tuning_a_context_that_is_not_there_is_the_requests_mistake(of_system, video, system):
    client, _ = of_system(system)
    response = ask(client, video, method="zar")
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["code"] == "invalid-parameters"
    assert "zar tunes the words in front of a class name" in document["detail"]
    assert f"{system} has none there" in document["detail"]
    assert "\n" not in document["detail"]


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_method_is_an_answer_or_one_line(served, checkpoints, video, system):
    methods = ["zero_shot", "zar", "tpt", "memo", "tent"]
    tpt = {"views": 4, "confidence": 0.5}
    client, _ = served(checkpoint=checkpoints[system], views=VIEWS, methods=methods, tpt=tpt)
    answers = {method: ask(client, video, method=method) for method in methods}
    refused = {method: answer.json() for method, answer in answers.items() if answer.status_code != 200}
    wanted = {"tpt", "memo", "tent"} if system in WHOLE else set()
    wanted |= {"zar", "tpt"} if system in WITHOUT_CONTEXT else set()
    assert refused.keys() == wanted
    for method, document in refused.items():
        assert (document["status"], document["code"]) == (422, "invalid-parameters")
        assert method in document["detail"]
        assert system in document["detail"]
        assert "\n" not in document["detail"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_template_is_an_answer_where_the_context_is_words(of_system, video, system):
    client, _ = of_system(system)
    response = ask(client, video, method="zero_shot", hypothesis_template="you see {}.")
    if system in OWN_CONTEXT:
        assert (response.status_code, response.json()["code"]) == (422, "invalid-parameters")
        assert f"{system}: has learnt" in response.json()["detail"]
    else:
        assert response.status_code == 200


def assert_bound(config):
    """Its three deployments are bound to these options, under which the model's is ready to answer."""
    ingress = build(config)._bound_deployment
    light, methods, *rest = ingress.init_args
    decoder, model = (one._bound_deployment for one in rest)
    assert (ingress.name, decoder.name) == (IngressDeployment.name, DecoderDeployment.name)
    assert (model.name, model.init_args[0]) == (ModelDeployment.name, config)
    assert light == decoder.init_args[0] == config.without_methods()
    assert tuple(one.name for one in methods) == config.methods
    Classifier(config.model_copy(update={"device": "cpu", "threads": 1})).warm_up()


class TestAtTheStart:
    """What no request could be answered by: one line where the service is built, and none where it fits."""

    @pytest.mark.parametrize("system", SYSTEMS)
    def test_a_system_that_fits_is_bound(self, checkpoints, system):
        methods = ("zero_shot",) if system in WITHOUT_CONTEXT else ("zar", "zero_shot")
        assert_bound(ServiceOptions(checkpoint=checkpoints[system], views=ViewConfig(**VIEWS), methods=methods))

    @pytest.mark.parametrize("system", ["ezclip", "a5", "vitaclip", "xclip"])
    @pytest.mark.parametrize("which", ["frames", "eval_frames"])
    def test_views_of_another_length_are_refused(self, checkpoints, system, which):
        config = ServiceOptions(
            checkpoint=checkpoints[system], views=ViewConfig(**{**VIEWS, which: 6}), methods=("memo", "zero_shot")
        )
        with pytest.raises(ConfigError, match=f"{system}: reads views of 4 frames, not of 6; give views.{which} 4"):
            build(config)

    def test_views_that_no_method_looks_at_may_have_any_length(self, checkpoints):
        views = ViewConfig(**{**VIEWS, "frames": 6})
        assert_bound(ServiceOptions(checkpoint=checkpoints["xclip"], views=views, methods=("zero_shot",)))

    @pytest.mark.parametrize(
        ("system", "methods", "said"),
        [
            ("a5", ("zar", "zero_shot"), "methods: leave zar out: zar tunes the words .* a5 has none there"),
            ("xclip", ("zar", "zero_shot"), "methods: leave zar out: zar tunes the words .* xclip has none there"),
            ("ezclip", ("zero_shot", "memo"), "methods: leave memo out: ezclip: memo cannot serve it"),
        ],
    )
    def test_methods_that_cannot_serve_it_are_refused(self, checkpoints, system, methods, said):
        config = ServiceOptions(
            checkpoint=checkpoints[system], views=ViewConfig(**VIEWS), methods=methods, device="cpu"
        )
        for refuse in (build, lambda config: Classifier(config).warm_up()):
            with pytest.raises(ConfigError, match=said) as caught:
                refuse(config)
            assert "\n" not in str(caught.value)

    def test_labels_that_it_cannot_read_are_no_methods_fault(self, checkpoints):
        config = ServiceOptions(checkpoint=checkpoints["vitaclip"], views=ViewConfig(**VIEWS), class_position="front")
        with pytest.raises(ConfigError, match=r"^vitaclip: has learnt 8 vectors"):
            build(config)
