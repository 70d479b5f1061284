"""Objects that are not where VOC has them are read or reported, never silently absent."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchdet_jax.datasets.voc_xml import parse_annotation
from tests.data.voc_layout import annotation, obj

BOX = "<bndbox><xmin>10</xmin><ymin>5</ymin><xmax>30</xmax><ymax>25</ymax></bndbox>"
ROTATED = (
    "<robndbox><cx>9</cx><cy>9</cy><w>4</w><h>4</h><angle>0.3</angle></robndbox>"  # roLabelImg
)
POLYGON = "<polygon><x1>1</x1><y1>2</y1><x2>8</x2><y2>2</y2><x3>8</x3><y3>9</y3></polygon>"
PART = f"<part><name>head</name>{BOX}</part>"


def parse(*objects):
    return parse_annotation(annotation(*objects).encode())


@pytest.mark.parametrize(
    ("text", "repair"),
    [
        (annotation(f"<Object><name>cell</name>{BOX}</Object>"), "<Object> for <object>"),
        (annotation(obj()).upper().replace("CELL", "cell"), "<BNDBOX> for <bndbox>"),
        (annotation(obj().replace("bndbox", "bndBox")), "<bndBox> for <bndbox>"),
        (annotation(obj().replace("xmin", "Xmin")), "<Xmin> for <xmin>"),
        (annotation(obj().replace("name>", "Name>")), "<Name> for <name>"),
        (annotation(f"<objects>{obj()}</objects>"), "<object> inside <objects>"),
        (annotation(f"<Objects><Object>{obj()[8:-9]}</Object></Objects>"), "inside <objects>"),
        (annotation(obj()).replace("annotation>", "Annotation>"), "<Annotation> for <annotation>"),
    ],
)
def test_other_case_and_a_wrapper_are_read_and_reported(text, repair):
    found = parse_annotation(text.encode())
    assert [(item.name, item.box_pixels) for item in found.objects] == [("cell", (5, 10, 25, 30))]
    assert found.size == (40, 60)
    assert any(repair in line for line in found.repairs)
    assert found.misplaced == ()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (f"<obj><name>cell</name>{BOX}</obj>", "<obj> shows an object"),
        (f"<item><name>cell</name>{BOX}</item>", "<item> shows an object"),
        ("<item><name>cell</name></item>", "no <object>, but there is <item>"),
        (f"<objects><item><name>cell</name>{BOX}</item></objects>", "<item> shows an object"),
        (f"<outputs><object><item>{BOX}</item></object></outputs>", "<outputs> shows an object"),
        (f"<object><object><name>cell</name>{BOX}</object></object>", "another <object>|no <bnd"),
        (f"<size><object><name>cell</name>{BOX}</object></size>", "<size> shows an object"),
        (BOX, "<bndbox> shows an object"),
        ("<bbox>1 2 3 4</bbox>", "<bbox> shows an object"),
        ('<box label="cell" xtl="1" ytl="2" xbr="3" ybr="4"/>', "<box> shows an object"),
        ('<image><thing points="1,2;3,4"/></image>', "<image> shows an object"),
        (f"<object><name>cell</name>{BOX}{BOX}</object>", r"object 1 \(cell\) has 2 <bndbox>"),
        (f"<object><name>cell</name>{ROTATED}</object>", "has <robndbox> and no <bndbox>"),
        (f"<object><name>cell</name>{POLYGON}</object>", "has <polygon> and no <bndbox>"),
        (f"<object><name>cell</name>{BOX.replace('bndbox', 'bbox')}</object>", "has <bbox> and no"),
        ("<object><name>cell</name><xmin>1</xmin><ymin>2</ymin></object>", "has <xmin> and no"),
        ('<object name="cell" xmin="1" ymin="2" xmax="3" ymax="4"/>', "attributes for its box"),
        ("<object><name>cell</name><bndbox><x>1</x><w>4</w></bndbox></object>", "with x, w, not x"),
        ("<object><name>cell</name><bndbox>1 2 3 4</bndbox></object>", "with only text, not xmin"),
    ],
)
@pytest.mark.parametrize("others", [0, 1])
def test_what_may_be_an_object_is_never_absent(body, words, others):
    text = annotation(body, *[obj()] * others)
    if others and "no <object>" in words:
        return  # an unknown element beside objects may be anything
    found = parse_annotation(text.encode())
    assert found.misplaced
    assert re.search(words, found.misplaced[0])


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<objects/>",
        "<objects> </objects>",
        "<segmented>0</segmented><source><database>x</database><annotation>y</annotation>"
        "<image>flickr</image></source><owner><flickrid>z</flickrid><name>w</name></owner>",
        "<filename>object.jpg</filename><comment>no object, no box</comment>",
    ],
)
def test_an_annotation_without_objects_is_an_image_without_objects(body):
    found = parse(body)
    assert (found.objects, found.repairs, found.misplaced) == ((), (), ())


@pytest.mark.parametrize(
    "extra",
    [
        PART,
        PART * 3,
        POLYGON,
        ROTATED,
        "<actions><running>1</running></actions><point><x>3</x><y>4</y></point>",
        "<attributes><attribute><name>box</name><value>3</value></attribute></attributes>",
        "<pose>Unspecified</pose><occluded>0</occluded>",
    ],
)
def test_what_tools_add_to_an_object_is_no_defect(extra):
    found = parse(obj(extra=extra), "<segmented>1</segmented>")
    assert [item.box_pixels for item in found.objects] == [(5, 10, 25, 30)]
    assert (found.repairs, found.misplaced) == ((), ())


TAGS = ["object", "Object", "objects", "obj", "item", "bndbox", "BndBox", "polygon", "name", "x"]


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.just(BOX),
        lambda inner: st.builds(
            lambda tag, parts: f"<{tag}>{''.join(parts)}</{tag}>",
            st.sampled_from(TAGS),
            st.lists(inner, min_size=1, max_size=3),
        ),
        max_leaves=6,
    )
)
def test_a_box_anywhere_is_an_object_or_reported(body):
    found = parse_annotation(f"<annotation>{body}</annotation>".encode())
    assert found.misplaced or len(found.objects) == body.count("<xmin>")


def test_flags_that_cannot_be_read_are_named():
    (item,) = parse(obj(extra="<truncated>0.0597</truncated>")).objects
    assert item.problem == "its flag truncated is '0.0597'; 0 is assumed"
    assert not item.is_truncated and item.box_pixels
    (item,) = parse(obj(difficult="Unspecified")).objects
    assert "difficult is 'Unspecified'" in item.problem
