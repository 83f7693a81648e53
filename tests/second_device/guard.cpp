// A guard of CUDA devices that does nothing: fake tensors on "cuda" need one, and torch's builds for CPUs have none.
#include <c10/core/impl/DeviceGuardImplInterface.h>

C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>);
