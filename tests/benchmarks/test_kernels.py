"""Kernels of a program for a GPU, counted in its text."""

from adadfq_jax.benchmarks import kernels
from adadfq_jax.benchmarks.gpu_cards import CARDS, LAUNCH

# In the form that XLA writes, shortened: three steps in a loop, and one transpose before it.
TEXT = """HloModule jit_run, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused_reduce (p.0: f32[16,8,8,32]) -> f32[32] {
  %p.0 = f32[16,8,8,32]{3,2,1,0} parameter(0)
  %zero = f32[] constant(0)
  ROOT %reduce.1 = f32[32]{0} reduce(%p.0, %zero), dimensions={0,1,2}, to_apply=%add
}

%fused_transpose (p.1: f32[3,3,16,32]) -> f32[32,3,3,16] {
  %p.1 = f32[3,3,16,32]{3,2,1,0} parameter(0)
  ROOT %transpose.1 = f32[32,3,3,16]{3,2,1,0} transpose(%p.1), dimensions={3,0,1,2}
}

%fused_multiply (p.2: f32[16,8,8,32], p.3: f32[32]) -> f32[16,8,8,32] {
  %p.2 = f32[16,8,8,32]{3,2,1,0} parameter(0)
  %p.3 = f32[32]{0} parameter(1)
  %wide = f32[16,8,8,32]{3,2,1,0} broadcast(%p.3), dimensions={3}
  ROOT %multiply.1 = f32[16,8,8,32]{3,2,1,0} multiply(%p.2, %wide)
}

%gemm (p.4: bf16[16,64], p.5: bf16[64,10]) -> bf16[16,10] {
  %p.4 = bf16[16,64]{1,0} parameter(0)
  %p.5 = bf16[64,10]{1,0} parameter(1)
  ROOT %dot.1 = bf16[16,10]{1,0} dot(%p.4, %p.5), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (state: (f32[16,16,16,16], f32[32,3,3,16], bf16[16,64])) -> (f32[16,16,16,16], f32[32,3,3,16], bf16[16,64]) {
  %state = (f32[16,16,16,16]{3,2,1,0}, f32[32,3,3,16]{3,2,1,0}, bf16[16,64]{1,0}) parameter(0)
  %x = f32[16,16,16,16]{3,2,1,0} get-tuple-element(%state), index=0
  %kernel = f32[32,3,3,16]{3,2,1,0} get-tuple-element(%state), index=1
  %h = bf16[16,64]{1,0} get-tuple-element(%state), index=2
  %conv.1 = (f32[16,8,8,32]{3,2,1,0}, /*index=1*/u8[0]{0}) custom-call(%x, %kernel), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %y = f32[16,8,8,32]{3,2,1,0} get-tuple-element(%conv.1), index=0
  %mean.1 = f32[32]{0} fusion(%y), kind=kInput, calls=%fused_reduce
  %scaled.1 = f32[16,8,8,32]{3,2,1,0} fusion(%y, %mean.1), kind=kLoop, calls=%fused_multiply
  %back.1 = (f32[16,16,16,16]{3,2,1,0}, u8[0]{0}) custom-call(%scaled.1, %kernel), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %filter.1 = (f32[32,3,3,16]{3,2,1,0}, u8[0]{0}) custom-call(%x, %scaled.1), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %x.1 = f32[16,16,16,16]{3,2,1,0} get-tuple-element(%back.1), index=0
  %kernel.1 = f32[32,3,3,16]{3,2,1,0} get-tuple-element(%filter.1), index=0
  %w = bf16[64,10]{1,0} constant({...})
  %logits = bf16[16,10]{1,0} fusion(%h, %w), kind=kCustom, calls=%gemm
  %sum.1 = f32[32,3,3,16]{3,2,1,0} all-reduce(%kernel.1), channel_id=1, to_apply=%add
  %copy.1 = bf16[16,64]{1,0} copy(%h)
  ROOT %tuple.1 = (f32[16,16,16,16]{3,2,1,0}, f32[32,3,3,16]{3,2,1,0}, bf16[16,64]{1,0}) tuple(%x.1, %sum.1, %copy.1)
}

%condition (state.1: (f32[16,16,16,16], f32[32,3,3,16], bf16[16,64])) -> pred[] {
  %state.1 = (f32[16,16,16,16]{3,2,1,0}, f32[32,3,3,16]{3,2,1,0}, bf16[16,64]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (arg.0: f32[16,16,16,16], arg.1: f32[3,3,16,32], arg.2: bf16[16,64]) -> (f32[16,16,16,16], f32[32,3,3,16], bf16[16,64]) {
  %arg.0 = f32[16,16,16,16]{3,2,1,0} parameter(0)
  %arg.1 = f32[3,3,16,32]{3,2,1,0} parameter(1)
  %arg.2 = bf16[16,64]{1,0} parameter(2)
  %turned = f32[32,3,3,16]{3,2,1,0} fusion(%arg.1), kind=kInput, calls=%fused_transpose
  %tuple.2 = (f32[16,16,16,16]{3,2,1,0}, f32[32,3,3,16]{3,2,1,0}, bf16[16,64]{1,0}) tuple(%arg.0, %turned, %arg.2)
  ROOT %while.1 = (f32[16,16,16,16]{3,2,1,0}, f32[32,3,3,16]{3,2,1,0}, bf16[16,64]{1,0}) while(%tuple.2), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""  # noqa: E501

# A kernel of 3 x 3 x 16 x 32 at each of the 16 x 8 x 8 pixels of the smaller image.
CONVOLUTION = 2 * 3 * 3 * 16 * 32 * 16 * 8 * 8


def test_kinds():
    assert kernels.count(kernels.kernels(TEXT)) == {
        "convolutions": 9,
        "products": 3,
        "reductions": 3,
        "other fusions": 3,
        "transposes": 1,
        "copies": 3,
        "collectives": 3,
    }


def test_work():
    found = kernels.kernels(TEXT)
    assert [k.flops for k in found if k.kind == "convolutions"] == [CONVOLUTION] * 3
    (product,) = (k for k in found if k.kind == "products")
    assert (product.flops, product.half) == (2 * 16 * 64 * 10, True)
    (scaled,) = (k for k in found if k.kind == "other fusions")
    assert (scaled.bytes, scaled.flops) == (4 * (2 * 16 * 8 * 8 * 32 + 32), 0)


def test_time():
    h100 = CARDS["h100"]
    small = kernels.Kernel("copies", 5, 8, 0, False)
    assert kernels.seconds([small], h100) == 5 * LAUNCH
    moving = kernels.Kernel("copies", 2, 10**9, 0, False)
    assert kernels.seconds([moving], h100) == 2e9 / h100.bandwidth
    for half, rate in ((False, h100.single_flops), (True, h100.half_flops)):
        computing = kernels.Kernel("products", 1, 8, 10**12, half)
        assert kernels.seconds([computing], h100) == 1e12 / rate


def test_of_what_is_sliced_only_the_slice_is_read():
    text = """
%fused (p: f32[1000], q: f32[4]) -> f32[4] {
  %p = f32[1000]{0} parameter(0)
  %q = f32[4]{0} parameter(1)
  %part = f32[4]{0} slice(%p), slice={[8:12]}
  ROOT %sum = f32[4]{0} add(%part, %q)
}

ENTRY %main (a: f32[1000], b: f32[4]) -> f32[4] {
  %a = f32[1000]{0} parameter(0)
  %b = f32[4]{0} parameter(1)
  ROOT %c = f32[4]{0} fusion(%a, %b), kind=kLoop, calls=%fused
}
"""
    (kernel,) = kernels.kernels(text)
    assert kernel.bytes == 3 * 4 * 4


def test_branches_and_cublas():
    text = """
%one (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %c = f32[8,4]{1,0} copy(%p)
}

%two (q: f32[8,4]) -> f32[8,4] {
  %q = f32[8,4]{1,0} parameter(0)
  %d = f32[8,4]{1,0} copy(%q)
  ROOT %e = f32[8,4]{1,0} copy(%d)
}

ENTRY %main (i: s32[], x: f32[8,4], w: f32[4,6]) -> f32[8,6] {
  %i = s32[] parameter(0)
  %x = f32[8,4]{1,0} parameter(1)
  %w = f32[4,6]{1,0} parameter(2)
  %y = f32[8,4]{1,0} conditional(%i, %x, %x), branch_computations={%one, %two}
  ROOT %z = (f32[8,6]{1,0}, s8[64]{0}) custom-call(%y, %w), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
}
"""  # noqa: E501
    found = kernels.kernels(text)
    assert kernels.count(found) == {"products": 1, "copies": 2}
    assert found[-1].flops == 2 * 8 * 6 * 4
