// What a CPU build of PyTorch lacks before tensors may say that they are on a CUDA device: a guard, hooks and a
// generator. There is one device, and nothing is ever done on it.
#include <ATen/core/Generator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

using c10::Device;
using c10::DeviceIndex;
using c10::Stream;

constexpr auto CUDA = c10::DeviceType::CUDA;

struct PretendedGuard final : c10::impl::NoOpDeviceGuardImpl<CUDA> {
  Device getDevice() const override { return {CUDA, 0}; }
  Device exchangeDevice(Device) const override { return {CUDA, 0}; }
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, {CUDA, 0}); }
  Stream getNewStream(Device, int) const override { return Stream(Stream::DEFAULT, {CUDA, 0}); }
  Stream exchangeStream(Stream) const noexcept override { return Stream(Stream::DEFAULT, {CUDA, 0}); }
};

C10_REGISTER_GUARD_IMPL(CUDA, PretendedGuard)

struct PretendedGenerator final : c10::GeneratorImpl {
  PretendedGenerator() : c10::GeneratorImpl({CUDA, 0}, c10::DispatchKeySet(c10::DispatchKey::CUDA)) {}
  static c10::DeviceType device_type() { return CUDA; }
  uint64_t seed() override { return seed_; }
  uint64_t current_seed() const override { return seed_; }
  void set_current_seed(uint64_t seed) override { seed_ = seed; }
  uint64_t get_offset() const override { return offset_; }
  void set_offset(uint64_t offset) override { offset_ = offset; }
  void set_state(const c10::TensorImpl&) override {}
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return at::empty({16}, at::kByte).getIntrusivePtr(); }
  PretendedGenerator* clone_impl() const override {
    auto copy = new PretendedGenerator();
    copy->seed_ = seed_;
    copy->offset_ = offset_;
    return copy;
  }

 private:
  uint64_t seed_ = 0, offset_ = 0;
};

namespace at {

// PyTorch looks for the hooks by this name.
struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasCUDART() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return false; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void deviceSynchronize(DeviceIndex) const override {}
  Generator getNewGenerator(DeviceIndex) const override { return make_generator<PretendedGenerator>(); }
};

REGISTER_CUDA_HOOKS(CUDAHooks);

}  // namespace at
