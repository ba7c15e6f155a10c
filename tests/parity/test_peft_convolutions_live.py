"""Adapters of convolutions beside PEFT, both running in float64 and in every layout of a kernel.

Where PEFT computes something else than its own merged weight, a test names the difference.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lora_jax as lj
import variants

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from peft_folders import moved  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]

PLACES = "HWD"
SIZES, KERNEL = (7, 6, 5), (3, 2, 2)
NAMES = lj.names_from_patterns({"conv/kernel": "conv"})


class Net(torch.nn.Module):
    def __init__(self, dims, groups=1, **options):
        super().__init__()
        kind = getattr(torch.nn, f"Conv{dims}d")
        self.conv = kind(4, 6, KERNEL[:dims], groups=groups, bias=False, **options)

    def forward(self, x):
        return torch.tanh(self.conv(x))


class Both:
    """One convolution on both sides; ours with the kernel in a layout such as `HWIO`."""

    def __init__(self, layout, **options):
        self.layout, self.dims = layout, len(layout) - 2
        places = PLACES[: self.dims]
        self.torch_layout, self.options = f"OI{places}", options
        torch.manual_seed(0)
        made = Net(self.dims, **options).double()
        self.weight = made.state_dict()["conv.weight"]
        self.params = {"conv": {"kernel": jnp.asarray(self.stored(self.weight.numpy()))}}
        random = np.random.RandomState(1)
        self.x = random.standard_normal((2, 4, *SIZES[: self.dims]))
        conv = made.conv
        if conv.padding == "same":
            reach = zip(conv.dilation, KERNEL, strict=False)
            pads = [((d * (k - 1)) // 2, (d * (k - 1) + 1) // 2) for d, k in reach]
        else:
            pads = [(n, n) for n in conv.padding]
        # JAX counts places in the order of the kernel's layout.
        turn = [PLACES.index(axis) for axis in layout if axis in PLACES]
        each = list(zip(conv.stride, pads, conv.dilation, strict=True))
        strides, pads, dilation = zip(*(each[place] for place in turn), strict=True)

        def forward(params, x):
            y = lax.conv_general_dilated(
                x,
                params["conv"]["kernel"],
                strides,
                pads,
                rhs_dilation=dilation,
                dimension_numbers=(f"NC{places}", layout, f"NC{places}"),
                feature_group_count=conv.groups,
            )
            return jnp.tanh(y)

        self.forward = forward

    def stored(self, tensor):
        """Torch's kernel in our layout."""
        return tensor.transpose([self.torch_layout.index(axis) for axis in self.layout])

    def rows(self, tensor):
        """The rows of an A, (rank, in, places), as the inputs of our matrix."""
        inner = self.layout.replace("O", "")
        order = [self.torch_layout.index(axis) for axis in inner]
        return tensor.transpose(0, *order).reshape(len(tensor), -1)

    def fresh(self):
        net = Net(self.dims, **self.options).double()
        net.load_state_dict({"conv.weight": self.weight})
        return net

    def wrapped(self, config):
        """The model under PEFT with random factors."""
        config = peft.get_peft_config({"target_modules": ["conv"], **config})
        model = peft.get_peft_model(self.fresh(), config).double().eval()
        random = np.random.RandomState(2)
        for parameter in (p for p in model.parameters() if p.requires_grad):
            draw = 0.4 * random.standard_normal(tuple(parameter.shape))
            parameter.data = parameter.detach() + torch.tensor(draw)
        return model

    def loaded(self, folder):
        return lj.load_peft(folder, variants.from_peft, NAMES, self.forward, self.params, self.x)

    def adapted(self, variant):
        adapted = lj.adapt(self.forward, variant, "conv/kernel")
        trainable, frozen = adapted.init(jax.random.key(0), self.params, self.x)
        return adapted, moved(trainable), frozen

    def read_by_peft(self, folder, merged=False):
        """What PEFT computes with a folder."""
        model = peft.PeftModel.from_pretrained(self.fresh(), str(folder)).double()
        model = model.merge_and_unload() if merged else model
        return model(torch.tensor(self.x)).detach().numpy()

    def theirs(self, model):
        """Output, and gradients of half the sum of squares, by what follows `conv.`."""
        y = model(torch.tensor(self.x))
        (y**2 / 2).sum().backward()
        ends = [(n.partition(".conv.")[2], p.grad) for n, p in model.named_parameters()]
        return y.detach().numpy(), {n: g.numpy() for n, g in ends if g is not None}

    def ours(self, adapted, trainable, frozen):
        def loss_of(trainable):
            y = adapted.apply(trainable, frozen, self.x)
            return (y**2 / 2).sum(), y

        (_, y), slopes = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(trainable)
        return np.asarray(y), slopes["adapters"]["conv/kernel"]

    def plain(self):
        return np.asarray(self.forward(self.params, self.x))


def close(got, expected):
    np.testing.assert_allclose(got, expected, atol=1e-11, rtol=0)


LAYOUTS = ["OIH", "HIO", "OIHW", "HWIO", "IWOH", "OIHWD", "HWDIO"]


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_lora_of_convolutions(layout, method, tmp_path, x64):
    """Outputs and gradients of what PEFT wrote; outputs there of what we write."""
    dims = len(layout) - 2
    options = {"stride": (2, 1, 1)[:dims], "padding": (1, 2, 0)[:dims]}
    both = Both(layout, **options)
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 5}
    config |= {"use_rslora": method == "rslora", "use_dora": method == "dora"}
    model = both.wrapped(config)
    model.save_pretrained(str(tmp_path))
    y, slopes = both.theirs(model)
    loaded = both.loaded(tmp_path)
    mine, own = both.ours(*loaded[:3])
    close(mine, y)
    assert np.abs(y - both.plain()).max() > 1e-2
    close(own["a"], both.rows(slopes["lora_A.default.weight"]))
    close(own["b"], slopes["lora_B.default.weight"].reshape(6, 3).T)
    if method == "dora":
        close(own["m"], slopes["lora_magnitude_vector.default.weight"].ravel())

    adapted = both.adapted(variants.make(method, rank=2))
    lj.save_peft(tmp_path / "ours", *adapted[1:], NAMES)
    close(both.read_by_peft(tmp_path / "ours"), both.ours(*adapted)[0])


@pytest.mark.parametrize(("layout", "dilation"), [("HIO", 3), ("HWIO", (3, 2)), ("OIHWD", 2)])
def test_peft_forgets_the_dilation_of_lora_until_it_merges(layout, dilation, tmp_path, x64):
    """The difference: its convolution to `rank` channels is not dilated."""
    both = Both(layout, dilation=dilation, padding="same")
    adapted = both.adapted(variants.make("lora", rank=2))
    with pytest.warns(lj.TrainingWarning, match="'conv/kernel' is dilated"):
        lj.save_peft(tmp_path, *adapted[1:], NAMES)
    expected = both.ours(*adapted)[0]
    assert np.abs(both.read_by_peft(tmp_path) - expected).max() > 1e-2
    close(both.read_by_peft(tmp_path, merged=True), expected)
    close(both.ours(*both.loaded(tmp_path)[:3])[0], expected)


def test_peft_mixes_the_groups_of_a_convolution_and_cannot_merge_them(tmp_path, x64):
    """The difference: every group's update is of all input channels, which no kernel is."""
    both = Both("HWIO", groups=2)
    model = both.wrapped({"peft_type": "LORA", "r": 2})
    layer = model.base_model.model.conv
    assert layer.lora_A["default"].weight.shape == (2, 4, 3, 2)
    with pytest.raises(NotImplementedError, match="groups"):
        model.merge_adapter()
    model.save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="LoRA of 2 groups mixes"):
        both.loaded(tmp_path)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layout", ["HIO", "OIHW", "HWIO"])
def test_loha_of_convolutions(layout, groups, tmp_path, x64):
    """Groups and dilation too: PEFT convolves by the update itself."""
    both = Both(layout, groups=groups, stride=2, padding=3, dilation=3)
    model = both.wrapped({"peft_type": "LOHA", "r": 2, "alpha": 4})
    model.save_pretrained(str(tmp_path))
    y, slopes = both.theirs(model)
    mine, own = both.ours(*both.loaded(tmp_path)[:3])
    close(mine, y)
    assert np.abs(y - both.plain()).max() > 1e-2
    inputs = both.torch_layout.replace("O", "")
    sizes = [both.weight.shape[both.torch_layout.index(axis)] for axis in inputs]
    for ours, name in {"a": "hada_w1_b", "c": "hada_w2_b"}.items():
        close(own[ours], both.rows(slopes[f"{name}.default"].reshape(2, *sizes)))
    for ours, name in {"b": "hada_w1_a", "d": "hada_w2_a"}.items():
        close(own[ours], slopes[f"{name}.default"].T)

    adapted = both.adapted(variants.make("loha", rank=2))
    lj.save_peft(tmp_path / "ours", *adapted[1:], NAMES)
    close(both.read_by_peft(tmp_path / "ours"), both.ours(*adapted)[0])


def test_lokr_is_pefts_where_a_factor_divides_the_channels(x64):
    """The difference: PEFT splits the channels alone, and has the places in the second matrix.

    So a kernel that is stored as torch's, with a factor that divides its channels, has the same.
    """
    both = Both("OIHW", stride=2, padding=1, dilation=(3, 1))
    config = {"peft_type": "LOKR", "r": 1, "alpha": 3, "decompose_factor": 2}
    model = both.wrapped(config)
    y, slopes = both.theirs(model)
    layer = model.base_model.model.conv
    adapted, trainable, frozen = both.adapted(variants.make("lokr", rank=1, alpha=3.0, factor=2))
    own = trainable["adapters"]["conv/kernel"]
    names = {"c": layer.lokr_w1, "b": layer.lokr_w2_a, "a": layer.lokr_w2_b}
    tensors = {ours: each["default"].detach().numpy() for ours, each in names.items()}
    put = {n: jnp.asarray(x if n == "a" else x.T) for n, x in tensors.items()}
    assert jax.tree.map(jnp.shape, put) == jax.tree.map(jnp.shape, own)
    mine, found = both.ours(adapted, {**trainable, "adapters": {"conv/kernel": put}}, frozen)
    close(mine, y)
    theirs = {"c": "lokr_w1", "b": "lokr_w2_a", "a": "lokr_w2_b"}
    for ours, name in theirs.items():
        slope = slopes[f"{name}.default"]
        close(found[ours], slope if ours == "a" else slope.T)
    assert np.abs(y - both.plain()).max() > 1e-2
