// A device for tests that computes on the CPU but has separate memory, like an accelerator.
//
// PrivateUse1 backend: tensors are malloc'ed, every operator without a kernel here runs on CPU copies. It refuses what
// CUDA refuses (operands on different devices, a generator of another device), optionally float64 as Apple's MPS does,
// and counts copies to the host, which would make a step wait for an accelerator.
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/view_cpu_dispatch.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

namespace {

constexpr auto DEVICE = c10::DeviceType::PrivateUse1;
long host_copies = 0;
bool refuses_float64 = false;
thread_local int inside_fallback = 0;

struct Allocator final : c10::Allocator {
    static void release(void* data) { std::free(data); }
    c10::DataPtr allocate(size_t bytes) override {
        void* data = bytes ? std::aligned_alloc(64, (bytes + 63) / 64 * 64) : nullptr;
        return {data, data, &release, c10::Device(DEVICE, 0)};
    }
    c10::DeleterFnPtr raw_deleter() const override { return &release; }
    void copy_data(void* target, const void* source, size_t bytes) const override {
        std::memcpy(target, source, bytes);
    }
};
Allocator allocator;
REGISTER_ALLOCATOR(DEVICE, &allocator);

// One device with one stream, which is always done.
struct Guard final : c10::impl::DeviceGuardImplInterface {
    const c10::Device device{DEVICE, 0};
    const c10::Stream stream{c10::Stream::DEFAULT, device};

    c10::DeviceType type() const override { return DEVICE; }
    c10::Device exchangeDevice(c10::Device) const override { return device; }
    c10::Device getDevice() const override { return device; }
    void setDevice(c10::Device) const override {}
    void uncheckedSetDevice(c10::Device) const noexcept override {}
    c10::Stream getStream(c10::Device) const override { return stream; }
    c10::Stream getDefaultStream(c10::Device) const override { return stream; }
    c10::Stream exchangeStream(c10::Stream) const override { return stream; }
    c10::DeviceIndex deviceCount() const noexcept override { return 1; }
    void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
    void block(void*, const c10::Stream&) const override {}
    bool queryEvent(void*) const override { return true; }
    void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
    c10::DeviceIndex deviceCount() const override { return 1; }
    c10::DeviceIndex getCurrentDevice() const override { return 0; }
    void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
        auto data = allocator.allocate(bytes);
        std::memcpy(data.get(), storage.data(), std::min(bytes, storage.nbytes()));
        storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(data));
        storage.unsafeGetStorageImpl()->set_nbytes(bytes);
    }
};
const bool registered = [] {
    at::RegisterPrivateUse1HooksInterface(new Hooks);
    return true;
}();

void check_dtype(c10::ScalarType dtype) {
    TORCH_CHECK_TYPE(
        !refuses_float64 || dtype != c10::kDouble, "this device has no float64; use float32 instead");
}

at::Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
                 std::optional<c10::Device>, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
    const auto type = c10::dtype_or_default(dtype);
    check_dtype(type);
    return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), type, format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> dtype,
                         std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
    const auto type = c10::dtype_or_default(dtype);
    check_dtype(type);
    return at::detail::empty_strided_generic(
        size, stride, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), type);
}

// The same memory as a CPU tensor.
at::Tensor as_cpu(const at::Tensor& tensor) {
    if (tensor.is_cpu()) return tensor;
    const auto options = at::TensorOptions().dtype(tensor.dtype()).device(c10::kCPU);
    return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), [keep = tensor](void*) {}, options);
}

at::Tensor copy_from(const at::Tensor& source, const at::Tensor& target, bool) {
    if (target.is_cpu() && !inside_fallback) ++host_copies;
    if (source.numel()) as_cpu(target).copy_(as_cpu(source));
    return target;
}

at::Tensor copy_from_and_resize(const at::Tensor& source, const at::Tensor& target) {
    if (target.sizes() != source.sizes()) target.resize_(source.sizes());
    return copy_from(source, target, false);
}

at::Scalar local_scalar(const at::Tensor& tensor) {
    if (!inside_fallback) ++host_copies;
    return as_cpu(tensor).item();
}

// Results computed on the CPU, in the device's memory.
at::Tensor to_device(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    auto result = empty_strided(tensor.sizes(), tensor.strides(), tensor.scalar_type(), {}, {}, {});
    return copy_from(tensor, result, false);
}

// torch dispatches the convolutions of an unknown device to these two, which the fallback does not reach.
at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                       at::IntArrayRef output_padding, int64_t groups) {
    std::optional<at::Tensor> own_bias;
    if (bias && bias->defined()) own_bias = as_cpu(*bias);
    return to_device(at::convolution(
        as_cpu(input), as_cpu(weight), own_bias, stride, padding, dilation, transposed, output_padding, groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups,
    std::array<bool, 3> mask) {
    const int64_t channels[] = {gradient.size(1)};
    auto [first, second, third] = at::convolution_backward(
        as_cpu(gradient), as_cpu(input), as_cpu(weight), at::IntArrayRef(channels), stride, padding, dilation,
        transposed, output_padding, groups, mask);
    return {to_device(first), to_device(second), to_device(third)};
}

// Only shapes and strides, for which the CPU kernels are valid with any memory.
at::Tensor as_strided(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride,
                      std::optional<int64_t> offset) {
    return at::cpu::as_strided(self, size, stride, offset);
}
at::Tensor view(const at::Tensor& self, c10::IntArrayRef size) { return at::cpu::view(self, size); }
at::Tensor reshape_alias(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride) {
    return at::cpu::as_strided(self, size, stride, self.storage_offset());
}

const at::Tensor& resize(const at::Tensor& self, c10::IntArrayRef size, std::optional<c10::MemoryFormat>) {
    auto* impl = self.unsafeGetTensorImpl();
    impl->set_sizes_contiguous(size);
    const auto bytes = impl->numel() * impl->itemsize() + impl->storage_offset() * impl->itemsize();
    if (bytes > static_cast<int64_t>(impl->storage().nbytes())) {
        at::detail::getPrivateUse1Hooks().resizePrivateUse1Bytes(impl->storage(), bytes);
    }
    return self;
}

at::Tensor& set_source(at::Tensor& self, c10::Storage source, int64_t offset, c10::IntArrayRef size,
                       c10::IntArrayRef stride) {
    auto* impl = self.unsafeGetTensorImpl();
    impl->set_storage_keep_dtype(std::move(source));
    impl->set_storage_offset(offset);
    impl->set_sizes_and_strides(size, stride);
    return self;
}

at::Tensor& set_whole_source(at::Tensor& self, c10::Storage source) {
    const int64_t size[] = {static_cast<int64_t>(source.nbytes() / self.dtype().itemsize())}, stride[] = {1};
    return set_source(self, std::move(source), 0, size, stride);
}

// Operators that take an index or a mask of the CPU for a tensor of the device, as CUDA does.
const std::set<std::string> INDEXING = {"aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_"};
// Operators whose result has a size that depends on the numbers: an accelerator must be waited for.
const std::set<std::string> WAITING = {"aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2"};

void check_operand(const at::Tensor& tensor, const std::string& name) {
    TORCH_CHECK(!tensor.defined() || !tensor.is_cpu() || tensor.dim() == 0 || INDEXING.count(name),
                "expected all tensors to be on one device, but ", name, " got one on the CPU");
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    const auto& name = c10::toString(op.operator_name());
    for (const auto& value : torch::jit::last(*stack, op.schema().arguments().size())) {
        if (value.isTensor()) check_operand(value.toTensor(), name);
        if (value.isTensorList()) for (const at::Tensor& tensor : value.toTensorVector()) check_operand(tensor, name);
        if (value.isGenerator()) {
            TORCH_CHECK(value.toGenerator().device().type() == DEVICE,
                        "expected a generator of this device, but ", name, " got one of ", value.toGenerator().device());
        }
    }
    if (WAITING.count(name) && !inside_fallback) ++host_copies;
    ++inside_fallback;
    try {
        at::native::cpu_fallback(op, stack);
    } catch (...) {
        --inside_fallback;
        throw;
    }
    --inside_fallback;
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
    m.impl("empty.memory_format", empty);
    m.impl("empty_strided", empty_strided);
    // torch's own composition of these two views memory that is channels last.
    for (const auto* name : {"native_group_norm", "native_layer_norm"}) {
        m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
    }
    m.impl("convolution_overrideable", convolution);
    m.impl("convolution_backward_overrideable", convolution_backward);
    m.impl("_copy_from", copy_from);
    m.impl("_copy_from_and_resize", copy_from_and_resize);
    m.impl("_local_scalar_dense", local_scalar);
    m.impl("as_strided", as_strided);
    m.impl("view", view);
    m.impl("_reshape_alias", reshape_alias);
    m.impl("resize_", resize);
    m.impl("set_.source_Storage", set_whole_source);
    m.impl("set_.source_Storage_storage_offset", set_source);
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

}  // namespace

extern "C" {
long second_device_host_copies() { return host_copies; }
void second_device_refuse_float64(bool refuse) { refuses_float64 = refuse; }
}
