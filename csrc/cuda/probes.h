// Kernels of one instruction each, for tests.
#pragma once
#include <string>
#include <vector>

#include "../view.h"

namespace grebe::cuda {

// Runs the probe `name`: see probes.cu for what it makes of its inputs. All arrays are dense and of
// 32-bit words.
void probe(const std::string& name, const std::vector<View>& inputs, const View& output);

}  // namespace grebe::cuda
