"""Raw products and einsums, in every order of axes."""

import jax.numpy as jnp

from zoo.case import Case, Normal


def matmul(normal: Normal) -> Case:
    return Case(lambda p, x: x @ p["w"], {"w": normal(4, 6)}, (normal(3, 4),))


def transposed(normal: Normal) -> Case:
    return Case(lambda p, x: x @ p["w"].T, {"w": normal(6, 4)}, (normal(3, 4),))


def weight_on_the_left(normal: Normal) -> Case:
    return Case(lambda p, x: p["w"] @ x, {"w": normal(6, 4)}, (normal(4, 3),))


def weight_on_the_left_of_a_stack(normal: Normal) -> Case:
    return Case(lambda p, x: p["w"] @ x, {"w": normal(5, 6, 4)}, (normal(5, 4, 3),))


def matrix_times_vector(normal: Normal) -> Case:
    return Case(lambda p, x: jnp.dot(p["w"], x), {"w": normal(6, 4)}, (normal(4),))


def single_array_as_params(normal: Normal) -> Case:
    return Case(lambda w, x: x @ w, normal(4, 6), (normal(3, 4),), targets=(".*",))


def ranks_of_x(normal: Normal) -> Case:
    def forward(p, *xs):
        return tuple(jnp.tensordot(x, p["w"], 1) for x in xs)

    return Case(
        forward, {"w": normal(4, 6)}, (normal(4), normal(3, 4), normal(2, 3, 4), normal(2, 1, 3, 4))
    )


def no_rows(normal: Normal) -> Case:
    return Case(lambda p, x: jnp.sin(x @ p["w"]), {"w": normal(4, 6)}, (normal(0, 4),))


def column_and_row(normal: Normal) -> Case:
    def forward(p, x):
        return jnp.tanh(x @ p["w1"]) @ p["w2"]

    return Case(forward, {"w1": normal(4, 1), "w2": normal(1, 6)}, (normal(3, 4),), rank=1)


def heads_of_size_one(normal: Normal) -> Case:
    def forward(p, x):
        return jnp.einsum("bthk,hkd->btd", jnp.einsum("btd,dhk->bthk", x, p["w1"]), p["w2"])

    return Case(forward, {"w1": normal(4, 3, 1), "w2": normal(3, 1, 4)}, (normal(2, 3, 4),))


def _einsum(spec: str, weight: tuple[int, ...], x: tuple[int, ...]):
    def make(normal: Normal) -> Case:
        def forward(p, x):
            return jnp.einsum(spec, x, p["w"])

        return Case(forward, {"w": normal(*weight)}, (normal(*x),))

    return make


heads_out = _einsum("bd,dhk->bhk", (4, 2, 3), (5, 4))
heads_in = _einsum("bhk,hkd->bd", (2, 3, 4), (5, 2, 3))
heads_first = _einsum("bd,hdk->bhk", (2, 4, 3), (5, 4))
heads_reversed = _einsum("bd,kdh->bhk", (3, 4, 2), (5, 4))
heads_turned = _einsum("bd,khd->bhk", (3, 2, 4), (5, 4))
heads_in_reversed = _einsum("bhk,kdh->bd", (3, 4, 2), (5, 2, 3))
heads_in_transposed_output = _einsum("bhk,dkh->db", (4, 3, 2), (5, 2, 3))
one_matrix_a_head = _einsum("bhd,hdk->bhk", (2, 4, 3), (5, 2, 4))
one_matrix_a_head_last = _einsum("bhd,dkh->bkh", (4, 3, 2), (5, 2, 4))
experts = _einsum("ebd,edf->ebf", (3, 4, 6), (3, 5, 4))
experts_transposed = _einsum("bed,efd->bef", (3, 6, 4), (5, 3, 4))
two_batch_axes = _einsum("bghd,hgdk->bghk", (2, 3, 4, 5), (2, 3, 2, 4))
one_expert = _einsum("ebd,edf->ebf", (1, 4, 6), (1, 5, 4))
four_axes = _einsum("bcd,cedf->bef", (2, 3, 4, 5), (6, 2, 4))
