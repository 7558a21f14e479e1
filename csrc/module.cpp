// The pybind11 module daq_mm._C: build information and the choice of CPU instruction set.
// The ops register themselves with PyTorch's dispatcher (TORCH_LIBRARY_IMPL) when it is loaded.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include "cpu/capability.h"
#include "cpu/peak.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Compiled kernels of daq_mm; they register under torch.ops.daq_mm when imported.";
  m.def(
      "build_info",
      [] {
        pybind11::dict info;
        info["build"] = DAQ_MM_BUILD_NAME;
        info["compiler"] = __VERSION__;
        info["torch"] = TORCH_VERSION;
        return info;
      },
      "How this extension was built: DAQ_MM_BUILD's result, compiler, torch version.");
  m.def("cpu_capabilities", &daq_mm::cpu::available_capabilities,
        "Instruction sets that this processor and this build have, best first.");
  m.def("cpu_capability", &daq_mm::cpu::capability_name, "The instruction set in use.");
  m.def("set_cpu_capability", &daq_mm::cpu::set_capability,
        "Force an instruction set; the empty name returns to the best one.");
  m.def("cpu_peak_gops", &daq_mm::cpu::peak_gops, pybind11::arg("seconds") = 0.05,
        pybind11::call_guard<pybind11::gil_scoped_release>(),
        "Register-only INT8 Gop/s of all threads together, measured for so many seconds.");
}
