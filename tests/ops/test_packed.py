"""Products with 4- and 8-bit weights against their expanded values: what torch's CPU kernels and ours agree on."""

import pytest
import torch

from headrace.ops import int4, int8
from headrace.quant.packed import Int4Blocks, Int8Rows, products

CASES = [(1, 48, 64), (5, 960, 576), (16, 64, 1536), (100, 576, 96)]  # rows, outputs, inputs


def some_blocks(num_outputs: int, num_inputs: int) -> torch.Tensor:
    blocks = torch.randint(0, 256, (num_outputs, num_inputs // 32, 20), dtype=torch.uint8)
    ends = torch.stack((torch.rand(blocks.shape[:2]) * 0.02, torch.randn(blocks.shape[:2]) * 0.1), dim=-1)
    blocks[..., 16:] = ends.half().view(torch.uint8)
    return blocks


def close(y: torch.Tensor, exact: torch.Tensor) -> None:
    """To bfloat16's 8 bits, of the largest values that were added up."""
    torch.testing.assert_close(y.float(), exact, atol=0.02 * exact.abs().max().item(), rtol=0.02)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_expanding_is_exact() -> None:
    blocks = some_blocks(70, 96)
    assert torch.equal(int4.expand(blocks), int4.expand_reference(blocks))
    first = blocks[3, 1]
    scale, bias = first[16:].view(torch.float16).float().tolist()
    expected = [code * scale + bias for byte in first[:16].tolist() for code in (byte & 15, byte >> 4)]
    torch.testing.assert_close(int4.expand_reference(blocks)[3, 32:64], torch.tensor(expected))


@pytest.mark.parametrize(("rows", "outputs", "inputs"), CASES)
def test_int4_products(rows: int, outputs: int, inputs: int) -> None:
    blocks, x = some_blocks(outputs, inputs), torch.randn(rows, inputs).bfloat16()
    exact = x.float() @ int4.expand_reference(blocks).t()
    close(int4.linear_packed(x, *int4.pack(blocks)), exact)
    for dtype in (torch.bfloat16, torch.float32):
        close(int4.linear_expanded(x, blocks, dtype), exact)


@pytest.mark.parametrize(("rows", "outputs", "inputs"), CASES)
def test_int8_products(rows: int, outputs: int, inputs: int) -> None:
    weight, x = torch.randn(outputs, inputs), torch.randn(rows, inputs).bfloat16()
    weight[1] = 0
    codes, scales = int8.quantize(weight)
    expanded = int8.expand_reference(codes, scales)
    assert ((expanded - weight).abs() <= weight.abs().amax(dim=1, keepdim=True) / 250).all()
    exact = x.float() @ expanded.t()
    close(int8.linear_packed(x, codes, scales), exact)
    for dtype in (torch.bfloat16, torch.float32):
        close(int8.linear_expanded(x, codes, scales, dtype), exact)


def test_many_outputs_are_packed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = some_blocks(192, 64)
    whole = int4.pack(blocks)
    monkeypatch.setattr(int4, "ROWS_A_PASS", 64)
    assert all(torch.equal(one, other) for one, other in zip(int4.pack(blocks), whole, strict=True))


@pytest.mark.parametrize("method", [Int4Blocks(), Int8Rows()], ids=["int4", "int8"])
@pytest.mark.parametrize("rows", [1, products().few_rows, products().few_rows + 1])
def test_methods_store_multiply_and_look_up(method: Int4Blocks | Int8Rows, rows: int) -> None:
    layer = torch.nn.Module()
    for name, parameter in method.allocate(64, 96, True, torch.bfloat16, torch.device("cpu")).items():
        layer.register_parameter(name, parameter)
    layer.bias.copy_(torch.randn(96))
    if isinstance(method, Int4Blocks):
        layer.blocks.copy_(some_blocks(96, 64))
        weight = int4.expand_reference(layer.blocks)
    else:
        codes, scales = int8.quantize(torch.randn(96, 64))
        layer.codes.copy_(codes)
        layer.scales.copy_(scales)
        weight = int8.expand_reference(codes, scales)
    method.finish(layer)
    x = torch.randn(rows, 64).bfloat16()
    close(method.apply(layer, x), x.float() @ weight.t() + layer.bias.float())
    indices = torch.tensor([5, 95, 5])
    assert torch.equal(method.lookup(layer, indices, torch.float32), weight[indices])
    assert method.num_bytes(layer) < weight.nbytes / 3


@pytest.mark.parametrize("method", [Int4Blocks(), Int8Rows()], ids=["int4", "int8"])
def test_a_row_does_not_depend_on_the_others(method: Int4Blocks | Int8Rows) -> None:
    """With as many rows, that is: others beside it leave a row's product alone, however large they are."""
    layer = torch.nn.Module()
    layer.bias = None
    layer.blocks = some_blocks(96, 64)
    layer.codes, layer.scales = int8.quantize(torch.randn(96, 64))
    method.finish(layer)
    for rows in (2, products().few_rows + 4):
        x = torch.randn(rows, 64).bfloat16()
        beside = torch.cat((x[:1], 1000 * torch.randn(rows - 1, 64).bfloat16()))
        assert torch.equal(method.apply(layer, x)[0], method.apply(layer, beside)[0])


@pytest.mark.parametrize("outputs", [24, 33])
def test_int4_takes_any_number_of_outputs(outputs: int) -> None:
    """torch's kernel takes multiples of 16 only, but a vocabulary has any size."""
    layer, blocks, x = torch.nn.Module(), some_blocks(outputs, 64), torch.randn(3, 64).bfloat16()
    layer.blocks, layer.bias = torch.nn.Parameter(blocks, requires_grad=False), None
    Int4Blocks().finish(layer)
    close(Int4Blocks().apply(layer, x), x.float() @ int4.expand_reference(blocks).t())
