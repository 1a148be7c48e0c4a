import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zar_ray.data.class_texts import (
    class_prompts,
    load_templates,
    read_class_texts,
    styled,
)
from zar_ray.data.classes import class_list, known_class_lists, name_key
from zar_ray.errors import ConfigError
from zar_ray.options.layers import conf_dir

STYLES = ("raw", "split_camel_case", "lower_case")
CLASSES = ("ApplyEyeMakeup", "Archery", "high jump")


class TestStyles:
    @pytest.mark.parametrize(
        ("name", "split"),
        [
            ("ApplyEyeMakeup", "Apply Eye Makeup"),
            ("YoYo", "Yo Yo"),
            ("TaiChi", "Tai Chi"),
            ("CleanAndJerk", "Clean And Jerk"),
            ("BasketballDunk", "Basketball Dunk"),
            ("HandstandPushups", "Handstand Pushups"),
            ("Archery", "Archery"),
            ("shoot_ball", "shoot ball"),
            ("_JumpRope_", " Jump Rope "),
            ("Apply_EyeMakeup", "Apply EyeMakeup"),
            ("passing American football (in game)", "passing American football (in game)"),
            ("watching a McDonald YoYo", "watching a McDonald YoYo"),
            ("yo-yo", "yo-yo"),
            ("Hula-HoopSpin", "Hula-Hoop Spin"),
            ("DJPlaying", "DJ Playing"),
            ("WatchingTV", "Watching TV"),
            ("AGoodThrow", "A Good Throw"),
            ("Run100Meters", "Run 100 Meters"),
            ("3DPrinting", "3D Printing"),
            ("4x4Driving", "4x4 Driving"),
            ("MP3Player", "MP3 Player"),
            ("mp3", "mp3"),
            ("ÜberÄpfelSpringen", "Über Äpfel Springen"),
        ],
    )
    def test_a_name_is_split_where_a_person_would(self, name, split):
        assert styled(name, "split_camel_case") == split
        assert styled(name, "lower_case") == split.lower()
        assert styled(name, "raw") == name.replace("_", " ")

    @pytest.mark.parametrize("style", STYLES)
    @given(name=st.text(max_size=20) | st.from_regex(r"[A-Za-z0-9_ ΣσİßǅK𝐀-]{0,12}", fullmatch=True))
    def test_a_styled_name_stays_as_it_is(self, style, name):
        once = styled(name, style)
        assert styled(once, style) == once

    @pytest.mark.parametrize("style", STYLES)
    @given(name=st.text(max_size=20))
    def test_letters_keep_their_order(self, style, name):
        def letters(text):
            return "".join(text.replace("_", " ").split()).casefold()

        assert letters(styled(name, style)) == letters(name)

    @pytest.mark.parametrize("style", STYLES)
    @pytest.mark.parametrize("benchmark", known_class_lists())
    def test_no_two_classes_of_a_benchmark_become_one(self, benchmark, style):
        names = class_list(benchmark)
        assert len({styled(name, style) for name in names}) == len(names)

    def test_every_ucf101_name_is_split_at_its_capitals(self):
        for name in class_list("ucf101"):
            assert len(styled(name, "split_camel_case").split()) == sum(c.isupper() for c in name)

    @pytest.mark.parametrize("benchmark", [name for name in known_class_lists() if not name.startswith("ucf101")])
    def test_the_other_benchmarks_have_nothing_to_split(self, benchmark):
        assert [styled(name, "split_camel_case") for name in class_list(benchmark)] == list(class_list(benchmark))


class TestTemplates:
    def test_the_published_lists_are_whole(self):
        sizes = {name: len(load_templates(name)) for name in ("actionclip", "clip_kinetics", "clip_ucf101")}
        assert sizes.keys() == {path.stem for path in (conf_dir() / "templates").glob("*.txt")}
        assert sizes == {"actionclip": 16, "clip_kinetics": 28, "clip_ucf101": 48}
        for name in sizes:
            templates = load_templates(name)
            assert len(set(templates)) == len(templates)
            assert all(one.count("{}") == 1 and one == one.strip() for one in templates)

    def test_the_clip_papers_lists_are_made_as_the_paper_made_them(self):
        kinds = ("photo", "video", "example", "demonstration")
        doing = ("using", "doing", "during", "performing", "practicing")
        kinetics = [f"a {k} of {{}}." for k in kinds] + [f"a {k} of a person {{}}." for k in kinds]
        kinetics += [f"a {k} of a person {d} {{}}." for k in kinds for d in doing]
        assert set(load_templates("clip_kinetics")) == set(kinetics)
        ucf = [
            f"a {k} of {a} person {d}{{}}."
            for k in kinds
            for a in ("a", "the")
            for d in ("", *(f"{d} " for d in doing))
        ]
        assert set(load_templates("clip_ucf101")) == set(ucf)

    def test_a_text_is_a_template(self):
        assert load_templates("a photo of {}, a type of action.") == ("a photo of {}, a type of action.",)

    @pytest.mark.parametrize("text", ["{} and {}", "a {name}.", "a {0}.", "{}{", "}{"])
    def test_a_template_has_one_place_for_the_name(self, text):
        with pytest.raises(ConfigError, match=r"must hold \{\} once"):
            load_templates(text)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("clip_kinetic", 'no template list "clip_kinetic".*did you mean "clip_kinetics"'),
            ("a video of a", "a template has {} where the class name goes; known: actionclip"),
            ("../classes/ucf101", "no template list"),
            ("", "no template list"),
        ],
    )
    def test_an_unknown_list(self, name, message):
        with pytest.raises(ConfigError, match=message):
            load_templates(name)


class TestPrompts:
    def test_without_a_template_there_are_names_alone(self):
        prompts = class_prompts(CLASSES, "a video of a", style="split_camel_case")
        assert prompts.names == ("Apply Eye Makeup", "Archery", "high jump")
        assert (prompts.context, prompts.texts) == ("a video of a", None)

    def test_a_template_says_the_context(self):
        prompts = class_prompts(CLASSES[:2], "a video of a", template="a photo of {}, a type of action.")
        assert prompts.context == "a photo of"
        assert prompts.texts == (
            ("a photo of ApplyEyeMakeup, a type of action.",),
            ("a photo of Archery, a type of action.",),
        )

    def test_a_list_gives_every_class_all_templates(self):
        prompts = class_prompts(CLASSES, "a video of a", style="lower_case", template="actionclip")
        assert prompts.texts is not None
        assert [len(own) for own in prompts.texts] == [16] * 3
        assert prompts.texts[0][3] == "apply eye makeup, an action"

    def test_texts_of_the_users_stand_for_themselves_or_in_a_template(self):
        texts = {"Archery": ("shooting arrows", "aiming {} bows"), "Biking": ("riding a bike",)}
        alone = class_prompts(("Archery", "Biking"), "a video of a", style="lower_case", class_texts=texts)
        assert alone.texts == (texts["Archery"], texts["Biking"])
        framed = class_prompts(("Archery", "Biking"), "a video of a", template="He is {}.", class_texts=texts)
        assert framed.texts == (("He is shooting arrows.", "He is aiming {} bows."), ("He is riding a bike.",))
        assert framed.context == "He is"


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


class TestFiles:
    def test_a_csv_has_a_row_a_text(self, tmp_path):
        content = (
            "\ufeffmodel,class,text\r\n"
            'x,Archery,"shooting arrows,\n with a bow"\r\n'
            "x,high_jump,leaping  over a bar \r\n"
            "\r\n"
            "x,Apply eye makeup,colouring eyelids\r\n"
            "x,Archery,aiming\r\n"
        )
        texts = read_class_texts(write(tmp_path, "texts.csv", content), CLASSES)
        assert list(texts.items()) == [
            ("ApplyEyeMakeup", ("colouring eyelids",)),
            ("Archery", ("shooting arrows, with a bow", "aiming")),
            ("high jump", ("leaping over a bar",)),
        ]

    def test_json_has_a_text_or_several(self, tmp_path):
        content = {"Archery": ["shooting", "aiming"], "high jump": "leaping", "ApplyEyeMakeup": ["colouring"]}
        texts = read_class_texts(write(tmp_path, "texts.JSON", json.dumps(content)), CLASSES)
        assert texts == {"ApplyEyeMakeup": ("colouring",), "Archery": ("shooting", "aiming"), "high jump": ("leaping",)}

    def test_an_exact_name_goes_before_one_that_is_alike(self, tmp_path):
        content = json.dumps({"yo-yo": "a", "YoYo": "b", "!": "c"})
        texts = read_class_texts(write(tmp_path, "texts.json", content), ("YoYo", "yo-yo", "!"))
        assert texts == {"YoYo": ("b",), "yo-yo": ("a",), "!": ("c",)}
        with pytest.raises(ConfigError, match='no class is named "Yo Yo"'):
            read_class_texts(write(tmp_path, "texts.json", '{"Yo Yo": "a"}'), ("YoYo", "yo-yo"))
        with pytest.raises(ConfigError, match=r'no class is named "\?"'):
            read_class_texts(write(tmp_path, "texts.json", '{"?": "a"}'), ("!",))

    @pytest.mark.parametrize("suffix", ["csv", "json"])
    @given(texts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=3, max_size=6))
    def test_what_is_written_is_read(self, tmp_path_factory, suffix, texts):
        import csv
        import io

        texts = list(dict.fromkeys(" ".join(text.split()) for text in texts if text.split()))
        own = {name: tuple(texts) for name in CLASSES}
        if suffix == "json":
            content = json.dumps(own)
        else:
            buffer = io.StringIO(newline="")
            csv.writer(buffer).writerows([("class", "text"), *((k, text) for k, of_k in own.items() for text in of_k)])
            content = buffer.getvalue()
        path = write(tmp_path_factory.mktemp("texts"), f"texts.{suffix}", content)
        if texts:
            assert read_class_texts(path, CLASSES) == own
        else:
            with pytest.raises(ConfigError, match="3 of 3 classes have no text"):
                read_class_texts(path, CLASSES)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("t.csv", "class,text\nArchery,a\nBowing,b\n", r't\.csv, line 3: no class is named "Bowing"; take it out'),
            (
                "t.csv",
                "class,text\nArchry,a\n",
                r't\.csv, line 2: no class is named "Archry"; did you mean "Archery"\?',
            ),
            (
                "t.csv",
                "class,text\nArchery,a\n",
                r't\.csv: 2 of 3 classes have no text \("ApplyEyeMakeup", "high jump"\)',
            ),
            ("t.csv", "class,text\nArchery, \n", r't\.csv, line 2: a text of class "Archery" is empty'),
            ("t.csv", "class,text\nArchery,a\nArchery,a \n", r't\.csv, line 3: class "Archery" has this text twice'),
            ("t.csv", "class,text\nArchery,a, b\n", r't\.csv, line 2: has 3 cells, the header has 2; .* "quotes"'),
            ("t.csv", "class,text\nArchery\n", r"t\.csv, line 2: has 1 cell, the header has 2"),
            ("t.csv", 'class,text\nArchery,"a\n', r"t\.csv, line 2: is not a CSV"),
            ("t.csv", "label,text\n", r't\.csv: must begin with a header that has the columns "class,text"'),
            ("t.csv", "", r"t\.csv: 3 of 3 classes have no text"),
            ("t.csv", b"class,text\nArchery,\xe9\n", r"t\.csv: is not UTF-8 text \(.* at byte 19\); save it as UTF-8"),
            ("t.json", "{", r"t\.json: is not JSON \(.*line 1 .*; write {"),
            ("t.json", "[" * 100_000, r"t\.json: is not JSON"),
            ("t.json", '["Archery"]', r"t\.json: holds no texts by class; write {"),
            ("t.json", "{}", r"t\.json: 3 of 3 classes have no text"),
            ("t.json", '{"Archery": 3}', r't\.json, class "Archery": is neither a text nor a list'),
            ("t.json", '{"Archery": {"a": "b"}}', r't\.json, class "Archery": is neither a text nor a list'),
            ("t.json", '{"Archery": ["a", null]}', r't\.json, class "Archery": is neither a text nor a list'),
            ("t.json", '{"Archery": []}', r"t\.json: 3 of 3 classes have no text"),
            ("t.json", '{"Archery": "a", "Archery": "b"}', r't\.json, class "Archery": is there twice'),
            ("t.json", '{"Archery": ["a", "a"]}', r't\.json, class "Archery": .* has this text twice'),
            ("t.json", '{"Bow\\ning": "a"}', r't\.json, class "Bow ing": no class is named "Bow ing"'),
            ("t.txt", "Archery", r"t\.txt: class texts are read from a \.csv or a \.json file"),
        ],
    )
    def test_a_file_that_cannot_be_used(self, tmp_path, name, content, message):
        with pytest.raises(ConfigError, match=message) as caught:
            read_class_texts(write(tmp_path, name, content), CLASSES)
        assert "\n" not in str(caught.value)

    def test_no_file(self, tmp_path):
        with pytest.raises(ConfigError, match=r"t\.csv: no such file$"):
            read_class_texts(tmp_path / "t.csv", CLASSES)
        (tmp_path / "folder.csv").mkdir()
        with pytest.raises(ConfigError, match=r"folder\.csv: cannot be read"):
            read_class_texts(tmp_path / "folder.csv", CLASSES)

    def test_spellings_are_compared_as_everywhere(self, tmp_path):
        names = class_list("ucf101")
        content = json.dumps({styled(name, "lower_case"): name_key(name) for name in names})
        texts = read_class_texts(write(tmp_path, "t.json", content), names)
        assert texts == {name: (name_key(name),) for name in names}
